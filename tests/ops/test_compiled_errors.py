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


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError), compiled_code("here"):
        raise KeyError("x")
