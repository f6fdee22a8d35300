"""Threads, and what is in use."""

from __future__ import annotations

import platform
import sys
from typing import Any

import numpy as np

from . import checks, threads
from .arrays import describe
from .backends import backends


def set_num_threads(n: int) -> None:
    """Set how many threads a call may use, in the whole process.

    The default is RNNFAST_NUM_THREADS, else the number of processors that the process may use,
    divided by LOCAL_WORLD_SIZE where torchrun has set it: the processes that share them.
    Small problems use fewer. Results are bit for bit the same for every number.

    Parameters
    ----------
    n : int
        1 to 1024.

    Raises
    ------
    TypeError, ValueError
        If n is not such a number.
    """
    if not checks.is_integer(n):
        raise TypeError(f"n: expected an int, got {describe(n)}")
    if not 1 <= n <= threads.MOST:
        raise ValueError(f"n: expected 1 to {threads.MOST} threads, got {n}")
    threads.put(int(n))


def get_num_threads() -> int:
    """How many threads a call may use; see `set_num_threads`."""
    return int(threads.get())


def show_config() -> dict[str, Any]:
    """Print and return versions, usable backends, the instruction set in use and the threads.

    Returns
    -------
    dict
        What was printed.
    """
    from . import __version__

    config: dict[str, Any] = {
        "rnnfast": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "platform": f"{sys.platform} {platform.machine()}",
    }
    for name, reason in backends().items():
        config[f"backend {name}"] = "usable" if reason is None else reason
    if config["backend native"] == "usable":
        from . import _native

        config["instruction set"] = _native.get_isa()
        config["instruction sets available"] = ", ".join(_native.available_isas())
    try:
        config["threads"] = get_num_threads()
    except ValueError as error:  # of what the environment asks for
        config["threads"] = str(error)
    width = max(map(len, config))
    for key, value in config.items():
        print(f"{key:<{width}}  {value}")
    return config
