"""Kernels run on the host machine in several orders of their threads, not in the most natural alone."""

from __future__ import annotations

import importlib
import os
from typing import Any

import pytest
from host_orders import ORDERS, order_for
from test_attention_grid import GRID, IMPLEMENTATIONS, case_name


def machine() -> Any:
    return importlib.import_module("llm_decoder._cuda_host")


def test_a_test_has_the_order_that_its_name_says(
    order_of_threads: tuple[str, int] | None, request: pytest.FixtureRequest
) -> None:
    assert machine().order_of_threads() == order_of_threads == order_for(request.node.name)


def test_an_order_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="must be ascending, descending or shuffled, got random"):
        machine().set_order_of_threads("random")


@pytest.mark.parametrize("implementation", ["cuda_host", "cuda_host_wgmma"])
def test_the_grid_takes_every_order(implementation: str) -> None:
    names = [case_name(case) for case, number in GRID if IMPLEMENTATIONS[number].name == implementation]
    test = "test_attention_over_pages_follows_the_formula"
    orders = {order_for(f"{test}[{implementation}-{name}]") for name in names}
    assert len(orders) >= 2
    assert orders == {*ORDERS} or os.environ.get("LLM_DECODER_GRID") == "few"
