"""The core's encoder against the reference, through the backend: every knob, ragged batches, every ISA."""

import dataclasses

import numpy as np
import pytest

from llm_decoder.backends import EncoderBackend, devices, pack_w4, pack_w8, quantize_weight_groups, quantize_weight_rows
from llm_decoder.encoder_reference import encode
from llm_decoder.encoders.config import EncoderConfig, weight_shapes
from llm_decoder.errors import MalformedFileError
from llm_decoder.packed_tensor import PackedTensor

BERT = EncoderConfig(3, 48, 80, 4, 50, n_positions=400, n_types=2)
MODERN = EncoderConfig(
    4,
    40,
    33,
    2,
    50,
    norm_eps=1e-5,
    norm_bias=False,
    norm_placement="pre",
    has_first_norm=False,
    final_norm=True,
    gated=True,
    rope_theta=160000.0,
    local_rope_theta=10000.0,
    local_window=6,
    global_every=3,
)
CONFIGS = {
    "bert": BERT,
    "roberta": dataclasses.replace(BERT, position_offset=2, n_types=1, norm_eps=1e-5, activation="gelu_tanh"),
    "odd sizes": EncoderConfig(2, 33, 31, 3, 47, n_positions=300, activation="relu"),
    "modernbert": MODERN,
    "one theta": dataclasses.replace(MODERN, local_rope_theta=0.0, activation="silu"),
    "no window": dataclasses.replace(MODERN, local_window=0, gated=False, has_first_norm=True, norm_bias=True),
    "post norm with rope": dataclasses.replace(BERT, n_positions=0, rope_theta=1000.0, final_norm=True),
    "no embedding norm": dataclasses.replace(BERT, embedding_norm=False, n_types=0),
    "one head": EncoderConfig(1, 16, 16, 1, 20),
}
# Awkward counts: one token, more than a page, more than a span of attention, more than a block of rows.
COUNTS = (7, 1, 130, 33, 260, 2)
MAX_TOKENS = 500
ISAS = devices()[0].isas


def make_weights(config: EncoderConfig, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in weight_shapes(config).items():
        values = rng.standard_normal(shape)
        if len(shape) == 2 and "embedding" not in name:
            values *= 1.5 / np.sqrt(shape[1])
        elif len(shape) == 1:
            values = 0.2 * values + (0.0 if name.endswith(".bias") else 1.0)
        weights[name] = values.astype(np.float32)
    return weights


def pack(name: str, weight: np.ndarray, layout: str) -> PackedTensor | np.ndarray:
    if weight.ndim == 1 or layout == "f32":
        return weight
    if layout == "w4" and name != "embedding" and not name.endswith("_embedding"):
        q, group_scale, group_min, scale = quantize_weight_groups(weight)
        return PackedTensor("w4", weight.shape, pack_w4(q, group_scale, group_min), scale)
    q, scale = quantize_weight_rows(weight)
    return PackedTensor("w8", weight.shape, pack_w8(q), scale)


def make_backend(
    config: EncoderConfig, weights: dict[str, np.ndarray], layout: str = "f32", n_threads: int = 1, isa: str = "auto"
) -> EncoderBackend:
    backend = EncoderBackend(config, n_threads, isa)
    for name, weight in weights.items():
        backend.set_weight(name, pack(name, weight, layout))
    backend.finalize(MAX_TOKENS)
    return backend


def make_batch(config: EncoderConfig, counts=COUNTS, seed: int = 1):
    rng = np.random.default_rng(seed)
    n_tokens = sum(counts)
    token_ids = rng.integers(0, config.vocab_size, n_tokens).astype(np.int32)
    type_ids = rng.integers(0, max(config.n_types, 1), n_tokens).astype(np.int32)
    return token_ids, np.array(counts, np.int32), type_ids


def cosines(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    return (rows * others).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(others, axis=1)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", CONFIGS)
def test_float32_gives_what_the_reference_gives(name, isa):
    config = CONFIGS[name]
    weights, batch = make_weights(config), make_batch(config)
    expected = encode(config, weights, *batch)
    got = make_backend(config, weights, isa=isa).encode(*batch)
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", CONFIGS)
def test_int8_points_where_the_reference_points(name, isa):
    config = CONFIGS[name]
    weights, batch = make_weights(config), make_batch(config)
    got = make_backend(config, weights, "w8", isa=isa).encode(*batch)
    # Heads of few channels with random weights: a row in a hundred has a softmax on the edge.
    of_rows = cosines(got, encode(config, weights, *batch))
    assert of_rows.mean() > 0.995
    assert np.quantile(of_rows, 0.01) > 0.975


def test_int8_ranks_sequences_as_the_reference_does():
    weights, counts = make_weights(BERT), (20,) * 24
    batch = make_batch(BERT, counts)
    starts = np.cumsum(counts) - counts
    expected = encode(BERT, weights, *batch)[starts]
    got = make_backend(BERT, weights, "w8").encode(*batch, "first")
    head = np.random.default_rng(2).standard_normal(BERT.hidden_size)
    ranks, expected_ranks = np.argsort(np.argsort(got @ head)), np.argsort(np.argsort(expected @ head))
    assert np.corrcoef(ranks, expected_ranks)[0, 1] > 0.97


def test_four_bit_weights_point_roughly_there():
    weights, batch = make_weights(BERT), make_batch(BERT)
    got = make_backend(BERT, weights, "w4").encode(*batch)
    assert cosines(got, encode(BERT, weights, *batch)).mean() > 0.97


@pytest.mark.parametrize("layout", ["f32", "w8"])
@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_a_sequence_gives_alone_what_it_gives_among_others_and_with_any_threads(name, layout):
    config = CONFIGS[name]
    weights, (token_ids, counts, type_ids) = make_weights(config), make_batch(config)
    together = make_backend(config, weights, layout).encode(token_ids, counts, type_ids)
    for n_threads in (1, 2, 5):
        backend = make_backend(config, weights, layout, n_threads)
        np.testing.assert_array_equal(backend.encode(token_ids, counts, type_ids), together)
        for end, count in zip(np.cumsum(counts), counts, strict=True):
            part = slice(end - count, end)
            alone = backend.encode(token_ids[part], counts[counts == count], type_ids[part])
            np.testing.assert_array_equal(alone, together[part])


@pytest.mark.parametrize("layout", ["f32", "w8"])
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("name", ["bert", "modernbert", "one head"])
def test_pooling_takes_the_first_row_or_the_mean(name, n_threads, layout):
    config = CONFIGS[name]
    weights, batch = make_weights(config), make_batch(config)
    backend = make_backend(config, weights, layout, n_threads)
    rows, ends = backend.encode(*batch), np.cumsum(batch[1])
    np.testing.assert_array_equal(backend.encode(*batch, "first"), rows[ends - batch[1]])
    means = [rows[end - count : end].mean(axis=0) for end, count in zip(ends, batch[1], strict=True)]
    np.testing.assert_allclose(backend.encode(*batch, "mean"), means, rtol=1e-4, atol=1e-5)


def test_types_are_zero_where_none_are_given():
    weights, (token_ids, counts, type_ids) = make_weights(BERT), make_batch(BERT)
    backend = make_backend(BERT, weights)
    np.testing.assert_array_equal(
        backend.encode(token_ids, counts), backend.encode(token_ids, counts, np.zeros_like(type_ids))
    )
    assert (backend.encode(token_ids, counts) != backend.encode(token_ids, counts, type_ids)).any()


def test_biases_of_matrices_may_be_missing():
    weights, batch = make_weights(BERT), make_batch(BERT)
    bare = {k: v for k, v in weights.items() if not k.endswith(("qkv.bias", "attn_o.bias", "fc1.bias", "fc2.bias"))}
    expected = encode(BERT, bare, *batch)
    got = make_backend(BERT, bare).encode(*batch)
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_nan_stays_in_its_sequence():
    weights, (token_ids, counts, type_ids) = make_weights(BERT), make_batch(BERT)
    weights["embedding"][49] = np.nan
    token_ids = np.where(token_ids == 49, 0, token_ids)
    token_ids[0] = 49
    got = make_backend(BERT, weights).encode(token_ids, counts, type_ids)
    assert np.isnan(got[: counts[0]]).all()
    assert np.isfinite(got[counts[0] :]).all()


def test_an_empty_batch_gives_no_rows():
    backend = make_backend(BERT, make_weights(BERT))
    empty = np.zeros(0, np.int32)
    assert backend.encode(empty, empty).shape == (0, 48)
    assert backend.encode(empty, empty, pooling="first").shape == (0, 48)


def test_a_weight_at_fault_is_named():
    weights = make_weights(BERT)
    without = {name: weight for name, weight in weights.items() if name != "layer_1/ln2"}
    with pytest.raises(ValueError, match="layer_1/ln2 is missing"):
        make_backend(BERT, without)
    with pytest.raises(ValueError, match="this model has no weight lm_head"):
        make_backend(BERT, weights | {"lm_head": weights["embedding"]})
    with pytest.raises(ValueError, match=r"layer_0/mlp_fc1 must be a matrix \[80, 48\], got f32 matrix \[48, 80\]"):
        make_backend(BERT, weights | {"layer_0/mlp_fc1": weights["layer_0/mlp_fc2"]})
    mixed = EncoderBackend(BERT, 1)
    for name, weight in weights.items():
        mixed.set_weight(name, pack(name, weight, "w8" if name == "embedding" else "f32"))
    with pytest.raises(ValueError, match="layer_0/attn_qkv as f32"):
        mixed.finalize(8)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (([50], [1]), r"token ids must be in \[0, 50\), got 50"),
        (([-1], [1]), r"token ids must be in \[0, 50\), got -1"),
        (([1, 2], [1]), "counts must sum to the 2 tokens, got 1"),
        (([1], [1, 0]), "counts must be in 1..400, got 0"),
        (([1] * 401, [401]), "counts must be in 1..400, got 401"),
        (([1] * 501, [250, 251]), "takes at most 500 tokens, got 501"),
        (([1, 2], [2], [0]), "type_ids must be one a token"),
        (([1], [1], [2]), r"type ids must be in \[0, 2\), got 2"),
        (([1], [1], None, "last"), "pooling must be 'none', 'first' or 'mean', got 'last'"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(batch, message):
    token_ids, counts, type_ids, pooling = (*batch, *(None, "none")[len(batch) - 2 :])
    arrays = [None if values is None else np.array(values, np.int32) for values in (token_ids, counts, type_ids)]
    with pytest.raises(ValueError, match=message):
        make_backend(BERT, make_weights(BERT)).encode(*arrays, pooling)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_heads": 5}, "multiple of n_heads"),
        ({"activation": "tanh"}, "activation to be one of"),
        ({"norm_placement": "both"}, "norm_placement to be one of"),
        ({"has_first_norm": False}, "has_first_norm"),
        ({"position_offset": 400}, "position_offset below n_positions"),
        ({"local_rope_theta": 1.0}, "rope_theta where local_rope_theta is"),
        ({"local_window": 1}, "local_window 0"),
        ({"rope_theta": float("nan")}, "rope_theta"),
        ({"n_layers": 0}, "n_layers in 1"),
    ],
)
def test_a_config_that_contradicts_itself_is_refused(change, message):
    with pytest.raises(MalformedFileError, match=message):
        dataclasses.replace(BERT, **change)
