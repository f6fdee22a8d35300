"""Data-parallel training: two processes on this machine equal one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch", reason="torch is not installed")

from helpers import ROOT
from torch_pairs import close

from rnnfast.torch import tapes

if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
    pytest.skip("torch has no gloo here", allow_module_level=True)

# Arguments: rank, number of processes, file to meet at, file to write to, and by what.
TRAIN = """
import sys
import torch
import rnnfast.torch
from torch import nn

rank, world, by = int(sys.argv[1]), int(sys.argv[2]), sys.argv[5]
class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = rnnfast.torch.LSTM(6, 20, 2, bidirectional=True)
        self.gru = rnnfast.torch.GRU(40, 10)
        self.out = nn.Linear(10, 3)
    def forward(self, x):
        return self.out(self.gru(self.lstm(x)[0])[1][0])
if by == "fsdp":
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
if world > 1:
    meeting = torch.distributed.FileStore(sys.argv[3], world)
    torch.distributed.init_process_group("gloo", store=meeting, rank=rank, world_size=world)
def train(dtype):
    torch.manual_seed(0)
    model = Model().to(dtype)
    if by == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    if by == "fsdp":
        mesh = init_device_mesh("cpu", (world,))
        for part in model.lstm, model.gru, model:
            fully_shard(part, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9)
    data = torch.Generator().manual_seed(1)
    for _ in range(8):
        x = torch.randn(12, 8, 6, generator=data, dtype=dtype)[:, rank::world]
        wanted = torch.randn(8, 3, generator=data, dtype=dtype)[rank::world]
        loss = (model(x) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = [p.detach() for p in model.parameters()]
    return [p.full_tensor() for p in found] if by == "fsdp" else found
found = [train(torch.float64), train(torch.float32)]
if rank == 0:
    torch.save(found, sys.argv[4])
if world > 1:
    torch.distributed.destroy_process_group()
"""


@pytest.mark.parametrize("by", ["ddp", "fsdp"])
def test_two_processes_equal_one(by: str, tmp_path: Path) -> None:
    if by == "fsdp" and not tapes.TELLS:
        pytest.skip("needs PyTorch 2.10 and the native backend")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "RNNFAST_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"
    processes = [
        subprocess.Popen(
            [
                *(sys.executable, "-c", TRAIN, str(rank), str(world)),
                *(tmp_path / "meet", tmp_path / f"result{world}", "" if world == 1 else by),
            ],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for world in (1, 2)
        for rank in range(world)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=180)
            assert process.returncode == 0, errors
    finally:
        for process in processes:
            process.kill()
            process.wait()
    alone, together = (
        torch.load(tmp_path / f"result{world}", weights_only=True) for world in (1, 2)
    )
    for got, wanted, rtol in zip(together, alone, (1e-12, 1e-6), strict=True):
        close(got, wanted, rtol)
