"""Tapes as tensors.

A tape travels as a tensor, so that whoever holds what autograd saved, be it the graph, a compiled
function, or torch.utils.checkpoint, decides how long it lives. The tensor's one byte means nothing:
the tape is found by its address, and let go with its memory. A copy of the tensor, which
save_on_cpu makes, has another address.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ..backends import ShortTape
from ..call import Backward

try:
    from .. import _native
except ImportError:  # the other backends do without
    _native = None  # type: ignore[assignment]

native: Any = _native

# Since PyTorch 2.10 its tensors tell C++ where their memory is, in far less time than Python.
TELLS = native is not None and native.exchanges(Tensor)


Tape: TypeAlias = Backward | ShortTape


class _Placed(NamedTuple):
    tape: Tensor
    places: list[int]


def record(tape: Tape | _Placed) -> Tensor:
    """A tensor that owns a tape."""
    if TELLS:
        token: Tensor = native.make_token(Tensor, tape)
        return token
    memory = _Memory(1, np.uint8)
    memory[0] = 0
    token = torch.from_numpy(memory)
    memory.address = token.data_ptr()
    _owned[memory.address] = tape
    return token


def blank(size: int = 0) -> Tensor:
    """A tensor like one that owns a tape, of one byte, or in the place of none."""
    return torch.empty(size, dtype=torch.uint8, device="cpu")


def placed(tape: Tensor, *tensors: Tensor | None) -> Tensor:
    """The same tape, for whoever may give the memory of the tensors that it reads to others.

    A compiler does, and makes them anew for the way back.
    """
    return record(_Placed(tape, addresses(*tensors)))


def recorded(token: Tensor, *tensors: Tensor | None) -> Tape | None:
    """The tape that a tensor owns, if it does, and reads these tensors where they are now."""
    if TELLS:
        found: Tape | _Placed | None = native.owned_by(token)
    else:
        found = _owned.get(token.data_ptr()) if token.numel() else None
    if isinstance(found, _Placed):
        return recorded(found.tape) if found.places == addresses(*tensors) else None
    return found


def addresses(*tensors: Tensor | None) -> list[int]:
    return [0 if t is None else t.data_ptr() for t in tensors]


def living() -> int:
    """How many tapes there are, for tests."""
    return int(native.tokens()) if TELLS else len(_owned)


_owned: dict[int, Tape | _Placed] = {}


class _Memory(np.ndarray[Any, np.dtype[np.uint8]]):
    address: int | None = None

    def __del__(self) -> None:
        if self.address is not None:
            _owned.pop(self.address, None)
