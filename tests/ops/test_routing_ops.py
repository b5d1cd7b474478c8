"""moe_routing and moe_sort through their doors, against the formula in float64 and plain lists."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from element_codes import decode, encode
from exported_tensor import CUDA, NamespacedTensor
from pairwise import cover

from llm_decoder import ops
from llm_decoder.errors import InvalidArgumentError
from llm_decoder.ops import machines
from llm_decoder.ops.routing import MAX_EXPERTS, MAX_GROUPS, MAX_TOP_K

COVER = [
    case
    for case in cover(
        {
            "dtype": ("float32", "bfloat16", "float16"),
            "groups": ((8, 1, 1, 1), (64, 8, 3, 2), (60, 4, 2, 1), (257, 1, 1, 1), (7, 7, 5, 1), (1024, 32, 9, 2)),
            "top_k": (1, 2, 5, 8),
            "scoring": ("softmax", "sigmoid"),
            "renormalize": (False, True),
            "scale": (1.0, 2.5),
            "has_bias": (False, True),
            "n_tokens": (1, 5, 33),
        },
        seed=5,
    )
    if case["top_k"] <= case["groups"][0] // case["groups"][1] * case["groups"][2]
]


def route(logits: np.ndarray, bias: Any, case: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """(weights, ids) of one token, from float64 logits."""
    n_experts, n_groups, top_k_groups, group_best = case["groups"]
    if case["scoring"] == "sigmoid":
        scores = 1 / (1 + np.exp(-logits))
    else:
        scores = np.exp(logits - logits.max())
        scores /= scores.sum()
    choices = scores if bias is None else scores + bias
    of_groups = np.sort(choices.reshape(n_groups, -1), axis=1)[:, -group_best:].sum(axis=1)
    groups = np.argsort(-of_groups, kind="stable")[:top_k_groups]
    is_left = np.isin(np.arange(n_experts) // (n_experts // n_groups), groups)
    ids = np.argsort(-np.where(is_left, choices, -np.inf), kind="stable")[: case["top_k"]]
    weights = scores[ids]
    if case["renormalize"]:
        weights = weights / weights.sum()
    return weights * case["scale"], ids


@pytest.mark.usefixtures("any_machine")
@pytest.mark.parametrize("case", COVER, ids=lambda case: "-".join(str(level) for level in case.values()))
def test_tokens_go_to_the_experts_of_the_formula(case: dict[str, Any]) -> None:
    n_experts = case["groups"][0]
    random = np.random.default_rng(0)
    # Far enough from each other that no rounding turns two around.
    levels = np.linspace(-4, 4, n_experts)
    logits = encode(np.stack([random.permutation(levels) for _ in range(case["n_tokens"])]), case["dtype"])
    bias = (0.01 * random.permutation(n_experts) / n_experts).astype(np.float32) if case["has_bias"] else None
    n_groups, top_k_groups, group_best = case["groups"][1:]
    weights, ids = ops.moe_routing(
        logits, case["top_k"], scoring=case["scoring"], renormalize=case["renormalize"], scale=case["scale"],
        bias=bias, n_groups=n_groups, top_k_groups=top_k_groups, group_best=group_best, dtype=case["dtype"],
    )  # fmt: skip
    assert (weights.dtype, ids.dtype) == (np.float32, np.int32)
    for i, row in enumerate(decode(logits, case["dtype"])):
        want, want_ids = route(row, bias, case)
        np.testing.assert_allclose(weights[i], want, rtol=2e-5)
        if case["dtype"] == "float32":
            np.testing.assert_array_equal(ids[i], want_ids)
        assert len(set(ids[i].tolist())) == case["top_k"]


@pytest.mark.usefixtures("any_machine")
def test_equal_choices_go_to_the_lowest_expert_and_nan_is_the_last() -> None:
    logits = np.zeros((2, 6), np.float32)
    logits[1, :3] = np.nan
    weights, ids = ops.moe_routing(logits, 2)
    np.testing.assert_array_equal(ids, [[0, 1], [3, 4]])
    np.testing.assert_allclose(weights, [[1 / 6] * 2, [1 / 3] * 2], rtol=1e-6)


@pytest.mark.usefixtures("any_machine")
def test_a_token_does_not_depend_on_the_batch() -> None:
    logits = np.random.default_rng(0).normal(size=(33, 60)).astype(np.float32)
    weights, ids = ops.moe_routing(logits, 4, renormalize=True)
    alone = ops.moe_routing(logits[20:21], 4, renormalize=True)
    np.testing.assert_array_equal(alone[0][0], weights[20])
    np.testing.assert_array_equal(alone[1][0], ids[20])
    assert [x.shape for x in ops.moe_routing(logits[:0], 4)] == [(0, 4), (0, 4)]


@pytest.mark.usefixtures("any_machine")
@pytest.mark.parametrize("n_tokens", [0, 1, 33, 3000])
@pytest.mark.parametrize("tile_rows", [1, 8, 1000])
@pytest.mark.parametrize("is_mapped", [False, True])
def test_pairs_lie_by_expert_and_tiles_cover_them(n_tokens: int, tile_rows: int, is_mapped: bool) -> None:
    random = np.random.default_rng(0)
    n_ids, here, top_k = 12, 9, 3
    ids = random.integers(-1, n_ids, size=(n_tokens, top_k)).astype(np.int32)
    expert_map = None
    if is_mapped:
        expert_map = random.permutation(n_ids).astype(np.int32)
        expert_map[expert_map >= here] = -1
    got = ops.moe_sort(ids, here, tile_rows, expert_map=expert_map)
    lists: list[list[int]] = [[] for _ in range(here)]
    for pair, expert in enumerate(ids.reshape(-1).tolist()):
        at = expert_map[expert] if is_mapped and expert >= 0 else expert
        if 0 <= at < here:
            lists[at].append(pair)
    want = [pair for pairs in lists for pair in pairs]
    np.testing.assert_array_equal(got.sorted_pairs[: len(want)], want)
    tiles, begin = [], 0
    for expert, pairs in enumerate(lists):
        tiles += [(expert, begin + i, min(tile_rows, len(pairs) - i)) for i in range(0, len(pairs), tile_rows)]
        begin += len(pairs)
    assert got.n_tiles.tolist() == [len(tiles)]
    np.testing.assert_array_equal(got.tiles[: len(tiles), :3], np.array(tiles, np.int32).reshape(-1, 3))


@pytest.mark.usefixtures("fake_device")
def test_routes_made_on_a_device_stay_there() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 8)).astype(np.float32)
    want = ops.moe_routing(logits, 2)
    got = ops.moe_routing(NamespacedTensor(logits, device=CUDA), 2, bias=np.zeros(8, np.float32))
    assert {x.device for x in got} == {CUDA}
    np.testing.assert_array_equal(got[1].array, want[1])
    tiles = ops.moe_sort(got[1], 8, 4)
    assert tiles.n_tiles.device == CUDA


def test_the_door_knows_the_limits_of_the_kernels(host_machine: None) -> None:
    kernels: Any = machines.kernels_for("here", "cpu")
    assert (kernels.MAX_EXPERTS, kernels.MAX_TOP_K, kernels.MAX_EXPERT_GROUPS) == (MAX_EXPERTS, MAX_TOP_K, MAX_GROUPS)


LOGITS = np.zeros((3, 8), np.float32)


@pytest.mark.usefixtures("any_machine")
@pytest.mark.parametrize(
    ("op", "arguments", "message"),
    [
        ("moe_routing", {"logits": LOGITS[0], "top_k": 2}, r"logits must have shape \[T, E\]"),
        ("moe_routing", {"logits": LOGITS.astype(np.float64), "top_k": 2}, "logits must be float32 or .*, got float64"),
        ("moe_routing", {"logits": np.zeros((1, 1025), np.float32), "top_k": 2}, "1 to 1024 experts .*, got 1025"),
        ("moe_routing", {"logits": LOGITS[:, :0], "top_k": 1}, "1 to 1024 experts .*, got 0"),
        ("moe_routing", {"logits": LOGITS, "top_k": 0}, "top_k must be a whole number of at least 1, got 0"),
        ("moe_routing", {"logits": LOGITS, "top_k": 9}, "top_k must be at most 32 and .*, 8, got 9"),
        (
            "moe_routing",
            {"logits": LOGITS, "top_k": 2, "scoring": "tanh"},
            "scoring must be one of softmax, sigmoid, got 'tanh'",
        ),
        ("moe_routing", {"logits": LOGITS, "top_k": 2, "scoring": LOGITS}, "scoring must be one of softmax, sigmoid"),
        ("moe_routing", {"logits": LOGITS, "top_k": 2, "n_groups": 3}, "n_groups must be 1 to 32 and divide the 8"),
        ("moe_routing", {"logits": LOGITS, "top_k": 2, "top_k_groups": 2}, "top_k_groups must be at most n_groups, 1"),
        ("moe_routing", {"logits": LOGITS, "top_k": 2, "group_best": 3}, "group_best must be 1, or 2 where"),
        ("moe_routing", {"logits": LOGITS, "top_k": 5, "n_groups": 2}, "what 1 groups of 4 experts have, 4, got 5"),
        ("moe_routing", {"logits": LOGITS, "top_k": 2, "bias": np.zeros(3, np.float32)}, r"bias must have shape \[8\]"),
        ("moe_routing", {"logits": LOGITS, "top_k": 2, "scale": np.nan}, "scale must be a finite number, got nan"),
        ("moe_sort", {"topk_ids": LOGITS, "n_experts": 8, "tile_rows": 8}, "topk_ids must be int32, got float32"),
        ("moe_sort", {"topk_ids": np.zeros(3, np.int32), "n_experts": 8, "tile_rows": 8}, r"shape \[T, top_k\]"),
        ("moe_sort", {"topk_ids": np.zeros((3, 2), np.int32), "n_experts": 0, "tile_rows": 8}, "n_experts .* got 0"),
        ("moe_sort", {"topk_ids": np.zeros((3, 2), np.int32), "n_experts": 1025, "tile_rows": 8}, "at most 1024"),
        ("moe_sort", {"topk_ids": np.zeros((3, 2), np.int32), "n_experts": 8, "tile_rows": 0}, "tile_rows .* got 0"),
    ],
)
def test_routes_that_cannot_be_are_refused(op: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"^\[{op}\] .*{message}"):
        getattr(ops, op)(**arguments)
