"""python -m bench [SUBJECT] [OPTIONS]: measure one subject, by default the table."""

from __future__ import annotations

import importlib
import subprocess
import sys

SUBJECTS = {
    "limits": "what the machine can do at most: arithmetic, bandwidth of each cache, barriers",
    "table": "rnnfast beside PyTorch and ONNX Runtime; what runs without a subject",
    "scaling": "time against T, B, H and threads, with the machine's limits",
    "latency": "one step of one row with packed weights, called from Python",
    "memory": "peak memory and time of a training step of 10,000 time steps",
    "products": "the matrix products of training beside other libraries",
    "precision": "bfloat16 and int8 weights: speed and error",
    "options": "what each option of the cells costs, beside the plain cell",
    "onnx": "rnnfast.onnx, its backend and in onnx's evaluator, beside ONNX Runtime",
    "jax": "rnnfast.jax beside layers written with lax.scan, both under jit",
    "torch": "the layers of rnnfast.torch beside torch.nn's",
    "keras": "rnnfast.keras beside Keras' own layers, on each of its backends",
    "numba": "the backend numba beside native and torch.nn, and what its first call costs",
}
# Named otherwise, not to hide the libraries.
MODULES = {name: f"{name}_adapter" for name in ("jax", "keras", "onnx", "torch")}
MODULES["numba"] = "numba_backend"
ALSO = {
    "gpu": "rnnfast on CuPy arrays beside torch's cuDNN; needs a GPU",
    "page": "docs/performance.md and its pictures, from the newest results",
    "everything": "all subjects one after the other, then the page",
}


def main(argv: list[str]) -> int:
    if argv[:1] in (["-h"], ["--help"]):
        print("subjects, each with its own --help:")
        print(*(f"  {name:<12}{what}" for name, what in (SUBJECTS | ALSO).items()), "", sep="\n")
    if argv[:1] == ["everything"]:
        return _everything(argv[1:])
    named = bool(argv) and argv[0] in SUBJECTS | ALSO
    subject, options = (argv[0], argv[1:]) if named else ("table", argv)
    module = importlib.import_module(f".{MODULES.get(subject, subject)}", __package__)
    return int(module.main(options))


def _everything(options: list[str]) -> int:
    """Run every subject in a process of its own, with these options; all even where one fails."""
    words = [[name, *options] for name in SUBJECTS]
    if "--quick" not in options:
        words[list(SUBJECTS).index("table")] += ["--shapes", "all"]
        words.append(["page"])
    failed = []
    for word in words:
        print(f"\n== {' '.join(word)}", flush=True)
        if subprocess.run([sys.executable, "-m", "bench", *word], check=False).returncode:
            failed.append(word[0])
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
