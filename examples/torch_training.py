"""Train a PyTorch model whose recurrent layer is rnnfast's, in one process or in several.

    python -m examples.torch_training
    torchrun --nproc-per-node=2 -m examples.torch_training

The model reads 30 symbols, one of which is marked, and tells which one that was.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import rnnfast
import rnnfast.torch

STEPS, SYMBOLS = 30, 8


class Reader(nn.Module):
    """Embedding, a recurrent layer in both directions, and a decision."""

    def __init__(self, cell: str, hidden: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(2 * SYMBOLS, 16)  # each symbol plain and marked
        layer = getattr(rnnfast.torch, cell.upper())
        self.recurrent = layer(16, hidden, batch_first=True, bidirectional=True)
        self.decide = nn.Linear(2 * hidden, SYMBOLS)

    def forward(self, symbols: Tensor) -> Tensor:
        y, _ = self.recurrent(self.embed(symbols))
        logits: Tensor = self.decide(y.mean(dim=1))
        return logits


def draw(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sequences with one marked symbol each, and those symbols."""
    symbols = torch.randint(SYMBOLS, (rows, STEPS), generator=generator)
    at = torch.randint(STEPS, (rows, 1), generator=generator)
    wanted = symbols.gather(1, at)
    return symbols.scatter(1, at, wanted + SYMBOLS), wanted[:, 0]


def share_threads() -> None:
    """Let the processes of this machine share its processors, as those of rnnfast do."""
    torch.set_num_threads(rnnfast.get_num_threads())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cell", choices=("lstm", "gru", "rnn"), default="lstm")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64, help="rows, of all processes together")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args(argv)

    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    share_threads()
    torch.manual_seed(0)
    model: nn.Module = Reader(options.cell, options.hidden)
    if world > 1:
        torch.distributed.init_process_group("gloo")
        model = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    data = torch.Generator().manual_seed(1)

    start = time.perf_counter()
    for step in range(1, options.steps + 1):
        symbols, wanted = (part[rank::world] for part in draw(options.batch, data))
        loss = nn.functional.cross_entropy(model(symbols), wanted)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if rank == 0 and step % 50 == 0:
            print(f"step {step}: loss {loss.item():.4f}", flush=True)

    model.eval()
    symbols, wanted = draw(1000, torch.Generator().manual_seed(2))
    with torch.no_grad():
        right = (model(symbols).argmax(dim=1) == wanted).float().mean().item()
    if rank == 0:
        seconds = time.perf_counter() - start
        print(f"{100 * right:.1f}% of new sequences read right, after {seconds:.1f} s")
    if world > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
