"""What every reader of weights offers, whatever the format: the config, and each weight by our name, in blocks of
rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from llm_decoder.model_config import ModelConfig

__all__ = ["Checkpoint", "FileIdentity", "Groups", "Part", "identify_file", "is_weights_directory"]


# Any of them tells a weights directory: one that lacks another is told what it lacks.
_TELLING_FILES = ("embedding.bin", "final_norm.bin", "layer_0/ln1.bin", "int8/embedding.bin", "int4/embedding.bin")

# Where a `weights/` directory may have its matrices.
Part = Literal["float", "int8", "int4"]


@dataclass(frozen=True)
class FileIdentity:
    """What tells one version of a file from another without reading it: the key of the cache of packed weights."""

    path: str
    n_bytes: int
    mtime_ns: int
    header_hash: str  # SHA-256 of the part that says what lies where, in hex


@dataclass(frozen=True)
class Groups:
    """Rows of a matrix in 4 bits (docs/quantization.md): weight = (group_scale * q + group_min) * scale.

    q uint8 [n, k]; group_scale uint8 and group_min int8 [n, ceil(k / 32)]; scale float32 [n].
    """

    q: npt.NDArray[np.uint8]
    group_scale: npt.NDArray[np.uint8]
    group_min: npt.NDArray[np.int8]
    scale: npt.NDArray[np.float32]


class Checkpoint(Protocol):
    """Weights of one model on disk. Names are those of `weight_shapes`; matrices are [n_out, n_in]."""

    @property
    def path(self) -> Path: ...

    @property
    def config(self) -> ModelConfig: ...

    @property
    def config_folder(self) -> Path:
        """Where tokenizer, chat template and generation defaults lie."""
        ...

    @property
    def hf_config(self) -> Mapping[str, Any]:
        """The architecture in HF's terms, as config.json has it."""
        ...

    def stored_dtype(self, name: str) -> str:
        """What a weight is stored as: "float32", "float16", "bfloat16", "int8", "int4" or "fp8"."""
        ...

    def read(self, name: str) -> npt.NDArray[np.float32]:
        """A whole weight as float32."""
        ...

    def rows(self, name: str, begin: int, end: int) -> npt.NDArray[np.float32]:
        """Rows [begin, end) of a matrix as float32 [end - begin, n_in]."""
        ...

    def quantized_rows(
        self, name: str, begin: int, end: int
    ) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]] | None:
        """Rows of a matrix that is stored as int8 [n, n_in] with scale float32 [n], or in 4 bits, which stand for such
        rows; None when it is stored as float."""
        ...

    def grouped_rows(self, name: str, begin: int, end: int) -> Groups | None:
        """Rows of a matrix that is stored in 4 bits; None when it is not."""
        ...

    def fp8_rows(self, name: str, begin: int, end: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]] | None:
        """Rows of a matrix that is stored in fp8, as codes [n, n_in] with scale float32 [n], NaN where a row is not
        finite; None when it is not stored so."""
        ...

    @property
    def forms(self) -> tuple[str, ...]:
        """What the matrices are stored as: float, int8 and int4 in a `weights/` directory, else dtypes."""
        ...

    def identity(self) -> list[FileIdentity]: ...


def is_weights_directory(folder: Path) -> bool:
    """Whether a folder holds weights in the form of weights/README.md rather than as HF lays them out."""
    return any((folder / name).exists() for name in _TELLING_FILES)


def identify_file(path: Path, header_hash: str) -> FileIdentity:
    """The identity of the file that `path` leads to, links followed."""
    resolved = path.resolve()
    status = resolved.stat()
    return FileIdentity(str(resolved), status.st_size, status.st_mtime_ns, header_hash)
