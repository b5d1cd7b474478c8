"""Libraries of NVIDIA that pip installs, and where they lie."""

from __future__ import annotations

import importlib.util
from pathlib import Path

__all__ = ["cublaslt_libraries"]

# Of the package `nvidia`, which all its wheels share.
_CUBLASLT = ("cu13/lib/libcublasLt.so.13", "cublas/lib/libcublasLt.so.12")


def cublaslt_libraries() -> list[str]:
    """Paths of libcublasLt in NVIDIA's wheels, the newest first; none where they are not installed, and a decoder takes
    the one that the system's loader knows."""
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or []]
    return [str(folder / name) for name in _CUBLASLT for folder in folders if (folder / name).is_file()]
