from __future__ import annotations

from collections.abc import Iterator

import pytest
from two_servers import Api, Running, Web


@pytest.fixture(scope="package", params=[Api, Web], ids=["uvicorn", "waitress"])
def server(request: pytest.FixtureRequest) -> Iterator[Running]:
    """Each of both servers, for all tests of this folder."""
    running: Running = request.param(read_timeout_s=1.0, max_body_bytes=4 << 20)
    yield running
    running.end()
