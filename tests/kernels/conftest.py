"""Every kernel test runs once for each ISA of this machine."""

from __future__ import annotations

import pytest

from llm_decoder import _core


@pytest.fixture(params=_core.isas())
def isa(request: pytest.FixtureRequest) -> str:
    return str(request.param)
