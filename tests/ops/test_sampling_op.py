"""sample, log_probs and best_of_beams through their doors, against full sorts in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from element_codes import decode, encode, poison
from exported_tensor import CUDA, ExportedTensor, NamespacedTensor
from pairwise import cover
from sampling_reference import edited, is_token_of, ragged, reference_token

from llm_decoder import ops
from llm_decoder.errors import InvalidArgumentError
from llm_decoder.ops import machines
from llm_decoder.ops.sampling import MAX_VOCAB_SIZE, NO_TOKEN_LEFT, NOT_FINITE

DTYPES = ("float32", "bfloat16", "float16")
LISTS = ("prompt", "output", "banned", "allowed")
NUMBERS = (
    "temperature",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)

COVER = cover(
    {
        "dtype": DTYPES,
        "vocab": (1, 127, 4099),
        "temperature": (0.0, 0.3, 1.0, 30.0),
        "top_k": (0, 1, 7, 1_000_000),
        "top_p": (0.05, 0.8, 1.0),
        "min_p": (0.0, 0.1, 1.0),
        "repetition_penalty": (1.0, 1.7, 0.5),
        "presence_penalty": (0.0, 1.5),
        "frequency_penalty": (0.0, -0.5),
        "lists": ("none", "history", "bias", "all"),
        "n_best": (0, 1, 3, 300),
    },
    seed=4,
)


def random_logits(n_rows: int, vocab: int, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    return encode(np.random.default_rng(seed).normal(size=(n_rows, vocab)) * 3, dtype)


def draws_of(case: dict[str, Any], n: int) -> list[dict[str, Any]]:
    """What each of n draws asks for, as the reference takes it."""
    random = np.random.default_rng(1)
    vocab = case["vocab"]
    found = []
    for i in range(n):
        p = {name: case[name] for name in (*NUMBERS, "top_k")}
        p |= {"seed": int(random.integers(1 << 63)), "position": int(random.integers(1 << 40))}
        if case["lists"] in ("history", "all"):
            p["prompt"], p["output"] = (random.integers(vocab, size=i % 5).tolist() for _ in range(2))
        if case["lists"] in ("bias", "all"):
            tokens = random.permutation(vocab)[: min(3, vocab - 1)]
            p["bias"] = {int(token): float(np.float32(random.normal())) for token in tokens}
        if case["lists"] == "all" and vocab > 10:
            p["banned"] = random.integers(vocab, size=4).tolist()
            p["allowed"] = random.permutation(vocab)[: vocab // 2].tolist() if i % 2 else []
            p["mask"] = random.permutation(vocab)[: vocab // 2].tolist() if i % 3 else None
        found.append(p)
    return found


def masks_of(lists: list[list[int] | None], vocab: int) -> tuple[np.ndarray, np.ndarray]:
    """The masks of these tokens, for draws that have any, the last draw's mask first."""
    of_draw = np.full(len(lists), -1, np.int32)
    words = np.zeros((sum(tokens is not None for tokens in lists), -(-vocab // 32)), np.uint32)
    n_left = len(words)
    for i, tokens in enumerate(lists):
        if tokens is None:
            continue
        n_left -= 1
        of_draw[i] = n_left
        for token in tokens:
            words[n_left, token // 32] |= np.uint32(1 << token % 32)
    return of_draw, words


def arguments_of(draws: list[dict[str, Any]], vocab: int) -> dict[str, Any]:
    """The same as sample takes it: arrays, one entry a draw."""

    def each(name: str, dtype: Any) -> np.ndarray:
        return np.array([p[name] for p in draws], dtype)

    found: dict[str, Any] = {name: each(name, np.float32) for name in NUMBERS}
    found |= {"top_k": each("top_k", np.int32), "seed": each("seed", np.uint64), "position": each("position", np.int64)}
    for name in LISTS:
        if any(name in p for p in draws):
            found[name] = ragged([p.get(name, []) for p in draws])
    if any("mask" in p for p in draws):
        found["masks"] = masks_of([p["mask"] for p in draws], vocab)
    if any("bias" in p for p in draws):
        values = np.array([value for p in draws for value in p["bias"].values()], np.float32)
        found["bias"] = (*ragged([list(p["bias"]) for p in draws]), values)
    return found


def log_softmax(row: np.ndarray) -> np.ndarray:
    largest = row.max()
    return row - largest - np.log(np.exp(row - largest).sum())


def check_best(best: Any, best_logprobs: Any, row: np.ndarray, n: int) -> None:
    order = np.lexsort((np.arange(len(row)), -row))[:n]
    np.testing.assert_array_equal(best, order)
    np.testing.assert_allclose(best_logprobs, log_softmax(row)[order], rtol=1e-5, atol=2e-5)


@pytest.mark.usefixtures("any_machine")
@pytest.mark.parametrize("case", COVER, ids=lambda case: "-".join(str(level) for level in case.values()))
def test_tokens_are_those_of_the_formula(case: dict[str, Any]) -> None:
    n_rows = 3
    logits = random_logits(n_rows, case["vocab"], case["dtype"])
    values = decode(logits, case["dtype"])
    draws = draws_of(case, 5)
    rows = np.arange(5, dtype=np.int32) % n_rows
    n_best = min(case["n_best"], case["vocab"])
    got = ops.sample(logits, **arguments_of(draws, case["vocab"]), rows=rows, n_best=n_best, dtype=case["dtype"])
    assert (got.tokens.dtype, got.best_tokens.shape) == (np.int32, (5, n_best))
    for i, (p, row) in enumerate(zip(draws, rows, strict=True)):
        token, raw = int(got.tokens[i]), values[row]
        if not np.isfinite(edited(raw, p)).any():
            assert token == NO_TOKEN_LEFT
            continue
        if p["temperature"] == 0:
            assert edited(raw, p)[token] >= edited(raw, p).max() - 1e-5
        else:
            assert is_token_of(token, raw, p)
        np.testing.assert_allclose(got.logprobs[i], log_softmax(raw)[token], rtol=1e-5, atol=2e-5)
        assert got.ranks[i] == 1 + (raw > raw[token]).sum()
        check_best(got.best_tokens[i], got.best_logprobs[i], raw, n_best)


def test_both_machines_draw_alike(request: pytest.FixtureRequest) -> None:
    case = {"vocab": 3001, "lists": "all"} | dict.fromkeys(NUMBERS, 0.0)
    case |= {"temperature": 1.3, "top_p": 0.9, "top_k": 200, "repetition_penalty": 1.2, "frequency_penalty": 0.3}
    logits = random_logits(4, 3001)
    arguments = arguments_of(draws_of(case, 24), case["vocab"]) | {
        "rows": np.arange(24, dtype=np.int32) % 4,
        "n_best": 4,
    }
    cpu = ops.sample(logits, **arguments)
    request.getfixturevalue("host_machine")
    gpu = ops.sample(logits, **arguments)
    for name in ("tokens", "ranks", "best_tokens"):
        np.testing.assert_array_equal(getattr(gpu, name), getattr(cpu, name))
    np.testing.assert_allclose(gpu.logprobs, cpu.logprobs, atol=1e-5)
    np.testing.assert_allclose(gpu.best_logprobs, cpu.best_logprobs, atol=1e-5)


@pytest.mark.usefixtures("any_machine")
def test_a_draw_does_not_depend_on_the_batch_and_repeats() -> None:
    logits = random_logits(5, 1000)
    seed = np.arange(100, 105, dtype=np.uint64)
    position = np.arange(5, dtype=np.int64) * 7
    options: dict[str, Any] = {"temperature": 2.0, "top_p": 0.9, "n_best": 2}
    together = ops.sample(logits, seed=seed, position=position, **options)
    again = ops.sample(logits, seed=seed, position=position, **options)
    for i in range(5):
        alone = ops.sample(logits[i : i + 1], seed=seed[i : i + 1], position=position[i : i + 1], **options)
        for name in alone._fields:
            np.testing.assert_array_equal(getattr(alone, name)[0], getattr(together, name)[i])
            np.testing.assert_array_equal(getattr(again, name)[i], getattr(together, name)[i])


@pytest.mark.usefixtures("any_machine")
def test_numbers_hold_for_all_draws_and_the_largest_needs_no_seed() -> None:
    logits = random_logits(6, 127)
    np.testing.assert_array_equal(ops.sample(logits, temperature=0).tokens, logits.argmax(axis=1))
    seed = np.arange(6)
    one = ops.sample(logits, temperature=0.7, top_k=5, top_p=0.9, min_p=0.01, position=3, seed=seed)
    each = ops.sample(
        logits,
        temperature=np.full(6, 0.7, np.float32),
        top_k=np.full(6, 5, np.int32),
        top_p=np.full(6, 0.9, np.float32),
        min_p=np.full(6, 0.01, np.float32),
        position=np.full(6, 3),
        seed=seed,
    )
    np.testing.assert_array_equal(one.tokens, each.tokens)
    want = [
        reference_token(
            row, {"temperature": 0.7, "top_k": 5, "top_p": 0.9, "min_p": 0.01, "position": 3, "seed": int(s)}
        )
        for row, s in zip(logits, seed, strict=True)
    ]
    np.testing.assert_array_equal(one.tokens, want)


@pytest.mark.usefixtures("any_machine")
def test_rows_may_lie_apart() -> None:
    wide = np.full((3, 140), np.nan, np.float32)
    wide[:, 3:130] = random_logits(3, 127)
    seed = np.arange(3)
    apart, together = (ops.sample(x, seed=seed, n_best=2) for x in (wide[:, 3:130], wide[:, 3:130].copy()))
    for name in apart._fields:
        np.testing.assert_array_equal(getattr(apart, name), getattr(together, name))


@pytest.mark.usefixtures("any_machine")
def test_rows_without_a_number_say_so_and_stay_alone() -> None:
    logits = random_logits(6, 127)
    want = ops.sample(logits, seed=np.arange(6), n_best=2)
    logits[1, 5], logits[2, 0], logits[3] = np.nan, np.inf, -np.inf
    logits[4, 100:] = -np.inf
    got = ops.sample(logits, seed=np.arange(6), n_best=2)
    np.testing.assert_array_equal(got.tokens[1:4], NOT_FINITE)
    assert np.isnan(got.logprobs[1:4]).all()
    np.testing.assert_array_equal(got.ranks[1:4], 0)
    np.testing.assert_array_equal(got.best_tokens[1:4], -1)
    assert np.isnan(got.best_logprobs[1:4]).all()
    assert 0 <= got.tokens[4] < 100
    for i in (0, 5):
        assert got.tokens[i] == want.tokens[i]
        np.testing.assert_array_equal(got.best_tokens[i], want.best_tokens[i])


@pytest.mark.usefixtures("any_machine")
def test_parameters_that_leave_nothing_say_so() -> None:
    logits = random_logits(2, 8)
    every = (np.array([0, 8, 8], np.int64), np.arange(8, dtype=np.int32))
    got = ops.sample(logits, temperature=0, banned=every)
    assert got.tokens[0] == NO_TOKEN_LEFT
    assert np.isnan(got.logprobs[0])
    assert got.tokens[1] == logits[1].argmax()


@pytest.mark.usefixtures("any_machine")
def test_no_rows_are_no_work() -> None:
    logits = np.zeros((0, 127), np.float32)
    assert ops.sample(logits, n_best=2).best_tokens.shape == (0, 2)
    assert ops.sample(random_logits(2, 127), rows=np.zeros(0, np.int32)).tokens.shape == (0,)
    assert ops.log_probs(logits, np.zeros(0, np.int32)).logprobs.shape == (0,)
    assert ops.best_of_beams(logits, np.zeros(0, np.float32), 2).tokens.shape == (0, 4)


@pytest.mark.usefixtures("any_machine")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 127, 4099])
def test_given_tokens_have_their_log_probabilities(dtype: str, vocab: int) -> None:
    logits = random_logits(5, vocab, dtype)
    targets = np.random.default_rng(2).integers(vocab, size=5).astype(np.int32)
    n_best = min(vocab, 3)
    got = ops.log_probs(logits, targets, n_best=n_best, dtype=dtype)
    for i, (row, target) in enumerate(zip(decode(logits, dtype), targets, strict=True)):
        np.testing.assert_allclose(got.logprobs[i], log_softmax(row)[target], rtol=1e-5, atol=2e-5)
        assert got.ranks[i] == 1 + (row > row[target]).sum()
        check_best(got.best_tokens[i], got.best_logprobs[i], row, n_best)


@pytest.mark.usefixtures("any_machine")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n_beams", "vocab", "n"), [(1, 127, 1), (4, 4099, 8), (3, 2, 6), (8, 500, 300)])
def test_beams_go_on_with_the_best_of_all(dtype: str, n_beams: int, vocab: int, n: int) -> None:
    n_groups = 3
    logits = random_logits(n_groups * n_beams, vocab, dtype)
    scores = (np.random.default_rng(3).normal(size=n_groups * n_beams) * 2).astype(np.float32)
    got = ops.best_of_beams(logits, scores, n_beams, n, dtype=dtype)
    values = decode(logits, dtype).reshape(n_groups, n_beams, vocab)
    for group in range(n_groups):
        of_group = scores.reshape(n_groups, n_beams)[group]
        want = np.stack([log_softmax(row) + before for row, before in zip(values[group], of_group, strict=True)])
        order = np.argsort(-want.reshape(-1), kind="stable")[:n]
        np.testing.assert_allclose(got.scores[group], want.reshape(-1)[order], rtol=1e-5, atol=2e-5)
        chosen = got.beams[group] * vocab + got.tokens[group]
        assert len(set(chosen.tolist())) == n
        np.testing.assert_allclose(want.reshape(-1)[chosen], got.scores[group], rtol=1e-5, atol=2e-5)
        if dtype == "float32":
            np.testing.assert_array_equal(chosen, order)


@pytest.mark.usefixtures("any_machine")
def test_equal_beams_and_tokens_come_in_order_and_a_beam_may_be_left_out() -> None:
    logits = np.zeros((4, 5), np.float32)
    got = ops.best_of_beams(logits, np.array([0, 0, -np.inf, 0], np.float32), 2, 4)
    np.testing.assert_array_equal(got.beams, [[0, 0, 0, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(got.tokens, [[0, 1, 2, 3], [0, 1, 2, 3]])


@pytest.mark.usefixtures("any_machine")
def test_a_group_with_a_row_that_is_not_finite_has_no_best() -> None:
    logits = random_logits(4, 5)
    logits[1, 3] = np.nan
    got = ops.best_of_beams(logits, np.zeros(4, np.float32), 2)
    np.testing.assert_array_equal(got.tokens[0], NOT_FINITE)
    np.testing.assert_array_equal(got.beams[0], -1)
    assert np.isnan(got.scores[0]).all()
    assert np.isfinite(got.scores[1]).all()


@pytest.mark.usefixtures("fake_device")
def test_on_a_device_parameters_may_be_there_or_in_host_memory() -> None:
    logits = random_logits(3, 127, "bfloat16")
    there = NamespacedTensor(logits, "bfloat16", device=CUDA)
    seed = np.arange(3)
    want = ops.sample(logits, temperature=0.8, seed=seed, dtype="bfloat16")
    temperature = np.full(3, 0.8, np.float32)
    got = ops.sample(there, temperature=ExportedTensor(temperature, device=CUDA), seed=seed)
    assert got.tokens.device == CUDA
    np.testing.assert_array_equal(got.tokens.array, want.tokens)


def test_the_door_knows_the_limit_of_the_kernels(host_machine: None) -> None:
    kernels: Any = machines.kernels_for("here", "cpu")
    assert kernels.MAX_VOCAB_SIZE == MAX_VOCAB_SIZE
    with pytest.raises(InvalidArgumentError, match=r"V \(axis 1 of logits\) must be at most 524288 on a GPU, got"):
        ops.sample(np.zeros((1, MAX_VOCAB_SIZE + 1), np.float32), temperature=0)


def test_every_list_ends_where_its_ids_do() -> None:
    logits = np.full((1, 8), poison("float32"), np.float32)
    with pytest.raises(InvalidArgumentError, match=r"banned_offsets must rise from 0 to the number of ids, 2, got"):
        ops.sample(logits, temperature=0, banned=(np.array([0, 1]), np.array([1, 2], np.int32)))


LOGITS, SEED = np.zeros((3, 8), np.float32), np.arange(3)
IDS = np.array([0, 1], np.int32)


@pytest.mark.usefixtures("any_machine")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": LOGITS[0]}, r"logits must have shape \[n_rows, V\] = \[any, any\], got \[8\]"),
        ({"logits": LOGITS[:, :0]}, r"V \(axis 1 of logits\) must be a whole number of at least 1, got 0"),
        ({"logits": LOGITS.astype(np.float64)}, "logits must be float32 or bfloat16 or float16, got float64"),
        ({"logits": LOGITS.T}, "the elements of the last axis of logits must lie beside each other"),
        ({"seed": None}, r"seed must come with a temperature above 0, uint64 or int64 \[3\], got None"),
        ({"seed": SEED.astype(np.int32)}, "seed must be uint64 or int64, got int32"),
        ({"seed": SEED[:2]}, r"seed must have shape \[R\] = \[3\], got \[2\]"),
        ({"temperature": -1.0}, "temperature must be finite and not negative, got -1.0 at 0"),
        ({"temperature": np.array([1, np.nan, 1], np.float32)}, "temperature must be finite and .*, got nan at 1"),
        ({"temperature": np.ones(3)}, "temperature must be float32, got float64; pass it as float32"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0.0"),
        ({"min_p": 1.5}, r"min_p must be in \[0, 1\], got 1.5"),
        ({"top_k": -1}, "top_k must be a whole number of at least 0, got -1"),
        ({"top_k": np.array([1, -2, 1], np.int32)}, "top_k must be at least 0, got -2 at 1"),
        ({"repetition_penalty": 0}, "repetition_penalty must be finite and positive, got 0.0"),
        ({"frequency_penalty": np.inf}, "frequency_penalty must be a finite number, got inf"),
        ({"position": 1.5}, "position must be a whole number of at least 0, got 1.5"),
        ({"rows": np.array([0, 3], np.int32)}, r"rows must be in \[0, 3\), got 3 at 1"),
        ({"prompt": IDS}, r"prompt must be \(offsets int64 \[4\], ids int32 \[n\]\), got ndarray"),
        ({"output": (np.array([0, 1, 2]), IDS)}, r"output_offsets must have shape \[n\] = \[4\], got \[3\]"),
        ({"output": (np.array([0, 2, 1, 2]), IDS)}, "output_offsets must rise from 0"),
        ({"masks": IDS}, r"masks must be \(mask of each draw int32 \[3\], words uint32 \[n_masks, 1\]\), got ndarray"),
        ({"masks": (IDS, np.zeros((1, 1), np.uint32))}, r"mask_of_draw must have shape \[n\] = \[3\], got \[2\]"),
        (
            {"masks": (np.array([0, -1, 1], np.int32), np.zeros((1, 1), np.uint32))},
            r"mask_of_draw must be in \[-1, 1\)",
        ),
        (
            {"masks": (np.zeros(3, np.int32), np.zeros((1, 2), np.uint32))},
            r"masks must have shape .* = \[any, 1\], got",
        ),
        ({"masks": (np.zeros(3, np.int32), np.zeros((1, 1), np.int64))}, "masks must be uint32 or int32, got int64"),
        ({"allowed": (np.array([0, 1, 1, 2]), IDS + 7)}, r"allowed_ids must be in \[0, 8\), got 8 at 1"),
        (
            {"bias": (np.array([0, 1, 1, 2]), IDS)},
            r"bias must be \(offsets int64 \[4\], ids .*, values .*\), got tuple",
        ),
        (
            {"bias": (np.array([0, 2, 2, 2]), IDS * 0, np.ones(2, np.float32))},
            "bias must name a token once a draw, got 0 2 times in draw 0; pass the sum",
        ),
        (
            {"bias": (np.array([0, 2, 2, 2]), IDS, np.full(2, np.inf, np.float32))},
            "bias_values must be finite, got inf at 0",
        ),
        ({"n_best": 9}, "n_best must be at most 8, got 9"),
        ({"n_best": -1}, "n_best must be a whole number of at least 0, got -1"),
    ],
)
def test_draws_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"^\[sample\] .*{message}"):
        ops.sample(**{"logits": LOGITS, "seed": SEED} | changes)


@pytest.mark.usefixtures("any_machine")
@pytest.mark.parametrize(
    ("op", "arguments", "message"),
    [
        ("log_probs", {"targets": np.array([0, 8, 1], np.int32)}, r"targets must be in \[0, 8\), got 8 at 1"),
        ("log_probs", {"targets": IDS}, r"targets must have shape \[n\] = \[3\], got \[2\]"),
        ("best_of_beams", {"scores": np.zeros(3, np.float32), "n_beams": 2}, "whole groups of 2 rows, n_beams, got 3"),
        ("best_of_beams", {"scores": np.zeros(3, np.float32), "n_beams": 0}, "n_beams must be .* at least 1, got 0"),
        ("best_of_beams", {"scores": np.zeros(3, np.float32), "n_beams": 3, "n": 0}, "n must be .* at least 1, got 0"),
        ("best_of_beams", {"scores": np.zeros(3, np.float32), "n_beams": 3, "n": 25}, "n must be at most 24, got 25"),
        ("best_of_beams", {"scores": np.zeros(3), "n_beams": 3}, "scores must be float32, got float64"),
        ("best_of_beams", {"scores": np.full(3, np.nan, np.float32), "n_beams": 3}, "scores must be below infinity"),
    ],
)
def test_rows_that_cannot_be_judged_are_refused(op: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"^\[{op}\] .*{message}"):
        getattr(ops, op)(LOGITS, **arguments)
