"""What compiled code raises becomes an error of the package that says where."""

from __future__ import annotations

import pytest

from llm_decoder.errors import BackendError, InvalidArgumentError, NotEnoughMemoryError
from llm_decoder.ops.machines import compiled_code


@pytest.mark.parametrize(
    ("raised", "error"),
    [
        (MemoryError("needs 5 bytes"), NotEnoughMemoryError),
        (RuntimeError("cudaErrorIllegalAddress"), BackendError),
        (ValueError("q must be"), InvalidArgumentError),
    ],
)
def test_an_error_of_compiled_code_keeps_its_words(raised: Exception, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"^\[here\] {raised}") as caught, compiled_code("here"):
        raise raised
    assert caught.value.__cause__ is raised


@pytest.mark.parametrize("inner", ["here", "ops.here"])
def test_a_place_is_named_once(inner: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^\[here\] q must be$"), compiled_code("here"):
        raise ValueError(f"[{inner}] q must be")


def test_the_place_of_another_is_kept() -> None:
    with pytest.raises(BackendError, match=r"^\[here\] \[make_tensor_map\] cudaError$"), compiled_code("here"):
        raise RuntimeError("[make_tensor_map] cudaError")


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError), compiled_code("here"):
        raise KeyError("x")
