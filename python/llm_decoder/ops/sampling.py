"""From rows of logits to tokens and log probabilities: sample, log_probs, best_of_beams."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from llm_decoder.backends import best_of_beams_op, log_probs_op, sample_op
from llm_decoder.ops import checks
from llm_decoder.ops.machines import (
    Addresses,
    GpuKernels,
    compiled_code,
    device_index,
    kernels_for,
    n_threads,
    stream_of,
)
from llm_decoder.ops.tensors import Tensor, device_of, make_like, view_floats, view_tensor

Array = npt.NDArray[Any]
Lists = tuple[Any, Any]

MAX_VOCAB_SIZE = 1 << 19  # of a GPU
NOT_FINITE = -1
NO_TOKEN_LEFT = -2


class Sampled(NamedTuple):
    """Of R draws. Log probabilities and ranks are those of the raw logits, whatever the parameters."""

    tokens: Any  # int32 [R]; -1: the logits are not finite, -2: the parameters leave none
    logprobs: Any  # float32 [R], NaN without a token
    ranks: Any  # int32 [R], 1 + how many logits are larger; 0 without a token
    best_tokens: Any  # int32 [R, n_best], by descending logit, then ascending id; -1: not finite
    best_logprobs: Any  # float32 [R, n_best]


class TokenLogProbs(NamedTuple):
    """Of R rows, as in Sampled."""

    logprobs: Any
    ranks: Any
    best_tokens: Any
    best_logprobs: Any


class BestOfBeams(NamedTuple):
    """Of G groups, the best first; -1, -1 and NaN where a row of the group is not finite."""

    tokens: Any  # int32 [G, n]
    beams: Any  # int32 [G, n], within the group
    scores: Any  # float32 [G, n]


def sample(
    logits: Any,
    *,
    temperature: Any = 1.0,
    top_k: Any = 0,
    top_p: Any = 1.0,
    min_p: Any = 0.0,
    repetition_penalty: Any = 1.0,
    presence_penalty: Any = 0.0,
    frequency_penalty: Any = 0.0,
    seed: Any | None = None,
    position: Any = 0,
    rows: Any | None = None,
    prompt: Lists | None = None,
    output: Lists | None = None,
    bias: tuple[Any, Any, Any] | None = None,
    banned: Lists | None = None,
    allowed: Lists | None = None,
    masks: Lists | None = None,
    n_best: int = 0,
    dtype: str | None = None,
    stream: int | None = None,
) -> Sampled:
    """Draws R tokens from rows of logits [n_rows, V] in float32, bfloat16 or float16.

    A number for all, or an array [R], float32 unless said otherwise: temperature (0: the largest logit), top_k int32
    (0: all), top_p in (0, 1], min_p in [0, 1] of the likeliest token; repetition_penalty of tokens in prompt or output
    (Keskar et al. 2019), presence_penalty of tokens in output, frequency_penalty of each time that a token is in
    output.
    seed uint64 or int64 [R], needed unless temperature is 0; position int64, of the drawn token in its sequence: the
    draw is Philox4x32-10 on both (Salmon et al. 2011), so that equal ones draw alike, and nothing depends on the batch.
    rows int32 [R]: which row each is drawn from; None: R = n_rows.
    prompt, output, banned, allowed: token ids of each draw, (offsets int64 [R + 1], ids int32 [n]), those of draw i at
    offsets[i] to offsets[i + 1]; allowed with no ids allows all. bias: (offsets, ids, values float32 [n]), a token once
    a draw. masks: (which of them is each draw's int32 [R], -1 = none; words uint32 or int32 [n_masks, ceil(V / 32)]),
    token t may be drawn where bit t % 32 of word t // 32 is set. Penalties come first, then bias, banned, allowed and
    masks, temperature, top_k, top_p, min_p.
    n_best: how many of the best tokens come with each draw. dtype: what uint16 stands for. stream: as in
    paged_attention. Everything is on the device of logits; parameters may be in host memory, where they are checked,
    at the cost of a copy and a wait; on a GPU they are trusted.

    Raises InvalidArgumentError, BackendError for a device that cannot be used.
    """
    call = _Logits("sample", logits, dtype, stream)
    n_rows = call.tensor.shape[0]
    row_of = None if rows is None else call.read("rows", rows, "int32", None)
    if row_of is not None and row_of.device == "cpu":
        checks.check_ids("sample", "rows", row_of.array(), n_rows)
    n_draws = n_rows if row_of is None else row_of.shape[0]
    draw = _Draw(call, n_draws)
    draw.add_floats(
        temperature=temperature,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
    )
    draw.add_whole("top_k", top_k, "int32", 0)
    draw.add_whole("position", position, "int64", 0)
    draw.add_seed(seed, is_needed=not np.isscalar(temperature) or temperature != 0)
    if row_of is not None:
        draw.tensors["rows"] = row_of
    for name, lists in {"prompt": prompt, "output": output, "banned": banned, "allowed": allowed}.items():
        draw.add_lists(name, lists)
    draw.add_bias(bias)
    draw.add_masks(masks)
    results = call.make_results(n_draws, n_best, has_tokens=True)
    if n_draws == 0:
        return Sampled(*results.values)
    if call.kernels is None:
        with compiled_code("sample"):
            arrays, rows_array = draw.for_cpu()
            sample_op(call.tensor.named(), rows_array, arrays, results.arrays(), n_threads())
        return Sampled(*results.values)
    addresses = call.addresses()
    with compiled_code("sample"):
        params = draw.for_gpu(addresses)
        raw = call.tensor.raw()
        workspace = call.workspace(call.kernels.sample_workspace_bytes(raw, params, n_draws, n_best))
        call.kernels.sample(raw, params, n_draws, n_best, results.raw(), workspace.address, call.index, call.stream)
        addresses.finish()
    return Sampled(*results.values)


def log_probs(
    logits: Any, targets: Any, *, n_best: int = 0, dtype: str | None = None, stream: int | None = None
) -> TokenLogProbs:
    """Log probability and rank of a given token in each row of logits [R, V]; targets int32 [R], in host memory
    checked, on a GPU trusted to be in [0, V). Other arguments, and errors, are those of sample.
    """
    call = _Logits("log_probs", logits, dtype, stream)
    n_rows, n_vocab = call.tensor.shape
    tokens = call.read("targets", targets, "int32", n_rows)
    if tokens.device == "cpu":
        checks.check_ids("log_probs", "targets", tokens.array(), n_vocab)
    results = call.make_results(n_rows, n_best, has_tokens=False)
    if n_rows == 0:
        return TokenLogProbs(*results.values[1:])
    if call.kernels is None:
        with compiled_code("log_probs"):
            log_probs_op(call.tensor.named(), tokens.array(), results.arrays(), n_threads())
        return TokenLogProbs(*results.values[1:])
    addresses = call.addresses()
    with compiled_code("log_probs"):
        raw = call.tensor.raw()
        workspace = call.workspace(call.kernels.log_probs_workspace_bytes(raw, n_best))
        call.kernels.log_probs(
            raw, addresses[tokens], n_best, results.raw(), workspace.address, call.index, call.stream
        )
        addresses.finish()
    return TokenLogProbs(*results.values[1:])


def best_of_beams(
    logits: Any,
    scores: Any,
    n_beams: int,
    n: int | None = None,
    *,
    dtype: str | None = None,
    stream: int | None = None,
) -> BestOfBeams:
    """The best continuations of groups of beams: of all (beam, token) of a group those n with the highest
    scores[beam] + log probability, then the lowest beam, then the lowest token.

    logits [G * n_beams, V]: rows of a group follow each other; scores float32 [G * n_beams], a beam that does not take
    part has -inf. n: None: 2 * n_beams, so that n_beams are left whatever ends. dtype, stream, and errors, are those
    of sample.
    """
    place = "best_of_beams"
    call = _Logits(place, logits, dtype, stream)
    n_rows, n_vocab = call.tensor.shape
    group = checks.check_count(place, "n_beams", n_beams, 1)
    if n_rows % group:
        raise checks.refuse(place, f"logits must have whole groups of {group} rows, n_beams, got {n_rows}")
    n_choices = group * n_vocab
    if n_choices >= 1 << 31:
        raise checks.refuse(place, f"n_beams * V must be below 2^31, got {n_choices}")
    count = checks.check_count(place, "n", min(2 * group, n_choices) if n is None else n, 1)
    if count > n_choices:
        raise checks.refuse(place, f"n must be at most {n_choices}, got {count}")
    before = call.read("scores", scores, "float32", n_rows)
    if before.device == "cpu" and not (before.array() < np.inf).all():
        raise checks.refuse(place, "scores must be below infinity and no NaN; -inf leaves a beam out")
    shape = (n_rows // group, count)
    values = [make_like(place, call.tensor, shape, kind) for kind in ("int32", "int32", "float32")]
    if n_rows == 0:
        return BestOfBeams(*values)
    tokens, beams, best = (view_tensor(place, "result", value, stream=call.stream) for value in values)
    if call.kernels is None:
        with compiled_code(place):
            best_of_beams_op(
                call.tensor.named(), before.array(), group, tokens.array(), beams.array(), best.array(), n_threads()
            )
        return BestOfBeams(*values)
    addresses = call.addresses()
    with compiled_code(place):
        raw = call.tensor.raw()
        workspace = call.workspace(call.kernels.best_of_beams_workspace_bytes(raw, group, count))
        call.kernels.best_of_beams(
            raw,
            addresses[before],
            group,
            count,
            tokens.address,
            beams.address,
            best.address,
            workspace.address,
            call.index,
            call.stream,
        )
        addresses.finish()
    return BestOfBeams(*values)


class _Logits:
    """The logits of a call, and where it is computed."""

    def __init__(self, place: str, logits: Any, dtype: str | None, stream: int | None) -> None:
        self.place = place
        self.device = device_of(place, "logits", logits)
        self.stream = stream_of(place, logits, self.device, stream)
        self.tensor = view_floats(place, "logits", logits, dtype, self.stream)
        checks.check_dtype(place, self.tensor, *checks.FLOATS)
        checks.check_shape(place, self.tensor, "[n_rows, V]", [None, None])
        checks.check_last_axis(place, self.tensor)
        checks.check_count(place, "V (axis 1 of logits)", self.tensor.shape[1], 1)
        self.kernels: GpuKernels | None = kernels_for(place, self.device)
        if self.kernels is not None and self.tensor.shape[1] > MAX_VOCAB_SIZE:
            raise checks.refuse(
                place, f"V (axis 1 of logits) must be at most {MAX_VOCAB_SIZE} on a GPU, got {self.tensor.shape[1]}"
            )

    @property
    def index(self) -> int:
        return device_index(self.device)

    def addresses(self) -> Addresses:
        assert self.kernels is not None
        return Addresses(self.kernels, self.device, self.stream)

    def read(self, name: str, value: Any, dtype: str, n: int | None) -> Tensor:
        """A vector without gaps, on the device or in host memory."""
        tensor = view_tensor(self.place, name, value, stream=self.stream)
        checks.check_dtype(self.place, tensor, dtype)
        checks.check_shape(self.place, tensor, "[n]", [n])
        checks.check_contiguous(self.place, tensor)
        checks.check_device_or_host(self.place, tensor, self.device)
        return tensor

    def workspace(self, n_bytes: int) -> Tensor:
        memory = make_like(self.place, self.tensor, (n_bytes,), "uint8")
        return view_tensor(self.place, "workspace", memory, stream=self.stream)

    def make_results(self, n: int, n_best: int, *, has_tokens: bool) -> _Results:
        count = checks.check_count(self.place, "n_best", n_best)
        n_vocab = self.tensor.shape[1]
        if count > n_vocab:
            raise checks.refuse(self.place, f"n_best must be at most {n_vocab}, got {count}")
        kinds = [("int32", (n,)), ("float32", (n,)), ("int32", (n,)), ("int32", (n, count)), ("float32", (n, count))]
        values = [
            None if i == 0 and not has_tokens else make_like(self.place, self.tensor, shape, kind)
            for i, (kind, shape) in enumerate(kinds)
        ]
        tensors = [
            None if value is None else view_tensor(self.place, "result", value, stream=self.stream) for value in values
        ]
        return _Results(values, tensors)


@dataclass(frozen=True, slots=True)
class _Results:
    """tokens (or None), logprobs, ranks, best tokens, best logprobs."""

    values: list[Any]
    tensors: list[Tensor | None]

    def arrays(self) -> tuple[Array | None, ...]:
        return tuple(None if tensor is None else tensor.array() for tensor in self.tensors)

    def raw(self) -> tuple[int, ...]:
        return tuple(0 if tensor is None else tensor.address for tensor in self.tensors)


@dataclass(frozen=True, slots=True)
class _Limit:
    off: float  # the value with which a parameter changes nothing
    need: str
    is_met: Callable[[Array], Array]


_LIMITS = {
    "temperature": _Limit(0.0, "finite and not negative", lambda x: np.isfinite(x) & (x >= 0)),
    "top_p": _Limit(1.0, "in (0, 1]", lambda x: (x > 0) & (x <= 1)),
    "min_p": _Limit(0.0, "in [0, 1]", lambda x: (x >= 0) & (x <= 1)),
    "repetition_penalty": _Limit(1.0, "finite and positive", lambda x: np.isfinite(x) & (x > 0)),
    "presence_penalty": _Limit(0.0, "finite", np.isfinite),
    "frequency_penalty": _Limit(0.0, "finite", np.isfinite),
}
_LISTS = {"prompt": "tokens", "output": "tokens", "bias": "ids", "banned": "ids", "allowed": "ids"}  # the CPU's names


class _Draw:
    """The parameters of R draws. `tensors`: those that change something, by the names of the kernels."""

    def __init__(self, call: _Logits, n_draws: int) -> None:
        self._call, self._n_draws = call, n_draws
        self._n_vocab = call.tensor.shape[1]
        self.tensors: dict[str, Tensor] = {}

    def add_floats(self, **values: Any) -> None:
        for name, value in values.items():
            limit = _LIMITS[name]
            if np.isscalar(value):
                number = checks.check_number(self._call.place, name, value)
                if number == limit.off:
                    continue
                value = np.full(self._n_draws, number, np.float32)
            tensor = self._call.read(name, value, "float32", self._n_draws)
            if tensor.device == "cpu":
                self._check(name, tensor.array(), limit.is_met, limit.need)
            self.tensors[name] = tensor

    def add_whole(self, name: str, value: Any, dtype: str, least: int) -> None:
        if np.isscalar(value):
            number = checks.check_count(self._call.place, name, value, least)
            if number == 0:
                return
            if number > np.iinfo(dtype).max:
                raise checks.refuse(self._call.place, f"{name} must be at most {np.iinfo(dtype).max}, got {number}")
            value = np.full(self._n_draws, number, dtype)
        tensor = self._call.read(name, value, dtype, self._n_draws)
        if tensor.device == "cpu":
            self._check(name, tensor.array(), lambda x: x >= least, f"at least {least}")
        self.tensors[name] = tensor

    def add_seed(self, seed: Any, *, is_needed: bool) -> None:
        place = self._call.place
        if seed is None:
            if is_needed and self._n_draws:
                raise checks.refuse(
                    place, f"seed must come with a temperature above 0, uint64 or int64 [{self._n_draws}], got None"
                )
            return
        tensor = view_tensor(place, "seed", seed, stream=self._call.stream)
        checks.check_dtype(place, tensor, "uint64", "int64")
        checks.check_shape(place, tensor, "[R]", [self._n_draws])
        checks.check_contiguous(place, tensor)
        checks.check_device_or_host(place, tensor, self._call.device)
        self.tensors["seed"] = tensor

    def add_lists(self, name: str, lists: Any) -> None:
        if lists is None:
            return
        if not isinstance(lists, tuple) or len(lists) != 2:
            raise checks.refuse(
                self._call.place,
                f"{name} must be (offsets int64 [{self._n_draws + 1}], ids int32 [n]), got {type(lists).__name__}",
            )
        offsets = self._call.read(f"{name}_offsets", lists[0], "int64", self._n_draws + 1)
        ids = self._call.read(f"{name}_ids", lists[1], "int32", None)
        if offsets.device == "cpu":
            self._check_offsets(name, offsets.array(), ids.shape[0])
        if ids.device == "cpu":
            checks.check_ids(self._call.place, f"{name}_ids", ids.array(), self._n_vocab)
        self.tensors[f"{name}_offsets"], self.tensors[f"{name}_ids"] = offsets, ids

    def add_bias(self, bias: Any) -> None:
        if bias is None:
            return
        place = self._call.place
        if not isinstance(bias, tuple) or len(bias) != 3:
            raise checks.refuse(
                place,
                f"bias must be (offsets int64 [{self._n_draws + 1}], ids int32 [n], values float32 [n]), got "
                f"{type(bias).__name__}",
            )
        self.add_lists("bias", bias[:2])
        offsets, ids = self.tensors["bias_offsets"], self.tensors["bias_ids"]
        values = self._call.read("bias_values", bias[2], "float32", ids.shape[0])
        if values.device == "cpu":
            self._check("bias_values", values.array(), np.isfinite, "finite")
        if offsets.device == "cpu" and ids.device == "cpu":
            draws = np.repeat(np.arange(self._n_draws), np.diff(offsets.array()))
            named, counts = np.unique(draws * self._n_vocab + ids.array(), return_counts=True)
            if (counts > 1).any():
                at = int(named[counts > 1][0])
                raise checks.refuse(
                    place,
                    f"bias must name a token once a draw, got {at % self._n_vocab} {counts.max()} times in draw "
                    f"{at // self._n_vocab}; pass the sum",
                )
        self.tensors["bias_values"] = values

    def add_masks(self, masks: Any) -> None:
        if masks is None:
            return
        place, n_words = self._call.place, -(-self._n_vocab // 32)
        if not isinstance(masks, tuple) or len(masks) != 2:
            raise checks.refuse(
                place,
                f"masks must be (mask of each draw int32 [{self._n_draws}], words uint32 [n_masks, {n_words}]), got "
                f"{type(masks).__name__}",
            )
        of_draw = self._call.read("mask_of_draw", masks[0], "int32", self._n_draws)
        words = view_tensor(place, "masks", masks[1], stream=self._call.stream)
        checks.check_dtype(place, words, "uint32", "int32")
        checks.check_shape(place, words, "[n_masks, n_words]", [None, n_words])
        checks.check_contiguous(place, words)
        checks.check_device_or_host(place, words, self._call.device)
        if of_draw.device == "cpu":
            n_masks = words.shape[0]
            self._check("mask_of_draw", of_draw.array(), lambda x: (x >= -1) & (x < n_masks), f"in [-1, {n_masks})")
        self.tensors["mask_of_draw"], self.tensors["masks"] = of_draw, words

    def for_gpu(self, addresses: Addresses) -> dict[str, int]:
        return {name: addresses[tensor] for name, tensor in self.tensors.items()}

    def for_cpu(self) -> tuple[dict[str, Array], Array]:
        """(the parameters, with values that change nothing where there are none, rows)"""
        n = self._n_draws
        arrays: dict[str, Array] = {name: np.full(n, limit.off, np.float32) for name, limit in _LIMITS.items()}
        arrays |= {"top_k": np.zeros(n, np.int32), "position": np.zeros(n, np.int64), "seed": np.zeros(n, np.uint64)}
        arrays["bias_values"] = np.zeros(0, np.float32)
        for name, ids in _LISTS.items():
            arrays[f"{name}_offsets"], arrays[f"{name}_{ids}"] = np.zeros(n + 1, np.int64), np.zeros(0, np.int32)
        given = {name: tensor.array() for name, tensor in self.tensors.items()}
        rows = given.pop("rows", np.arange(n, dtype=np.int32))
        for name, ids in _LISTS.items():
            if f"{name}_ids" in given:
                given[f"{name}_{ids}"] = given.pop(f"{name}_ids")
        if "seed" in given:
            given["seed"] = given["seed"].view(np.uint64)
        if "masks" in given:
            given["masks"] = given["masks"].view(np.uint32)
        return arrays | given, rows

    def _check(self, name: str, values: Array, is_met: Callable[[Array], Array], need: str) -> None:
        is_wrong = ~is_met(values)
        if is_wrong.any():
            i = int(np.argmax(is_wrong))
            raise checks.refuse(self._call.place, f"{name} must be {need}, got {values[i]} at {i}")

    def _check_offsets(self, name: str, offsets: Array, n_ids: int) -> None:
        if offsets[0] != 0 or offsets[-1] != n_ids or (np.diff(offsets) < 0).any():
            raise checks.refuse(
                self._call.place,
                f"{name}_offsets must rise from 0 to the number of ids, {n_ids}, got {offsets.tolist()}",
            )
