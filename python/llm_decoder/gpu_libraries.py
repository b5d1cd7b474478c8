"""Libraries of NVIDIA that pip installs, and where they lie."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

__all__ = ["cublaslt_libraries", "find_cublaslt"]

# Of the package `nvidia`, which all its wheels share.
_CUBLASLT = ("cu13/lib/libcublasLt.so.13", "cublas/lib/libcublasLt.so.12")
# Names that the system's loader is asked for, as decoder/dense_gemm_cublaslt.cpp does.
_LOADER_NAMES = ("libcublasLt.so.13", "libcublasLt.so.12")


def cublaslt_libraries() -> list[str]:
    """Paths of libcublasLt in NVIDIA's wheels, the newest first; none where they are not installed, and a decoder takes
    the one that the system's loader knows."""
    spec = importlib.util.find_spec("nvidia")
    folders = [] if spec is None else [Path(folder) for folder in spec.submodule_search_locations or []]
    return [str(folder / name) for name in _CUBLASLT for folder in folders if (folder / name).is_file()]


def find_cublaslt() -> str | None:
    """The libcublasLt that a decoder opens: a path, or a name that the system's loader knows. None: there is none that
    can be opened."""
    for library in cublaslt_libraries() or _LOADER_NAMES:
        try:
            ctypes.CDLL(library)
        except OSError:
            continue
        return library
    return None
