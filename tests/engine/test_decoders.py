"""The public INT8Decoder: a loop of one's own."""

import numpy as np
import pytest
from models_factory import make_checkpoint

from llm_decoder import LLM, INT8Decoder, SamplingParams, fit
from llm_decoder.errors import (
    ConfigError,
    InvalidRequestError,
    LLMDecoderError,
    ModelNotFoundError,
    NotEnoughMemoryError,
)

PROMPT = list(range(1, 40))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("models") / "llama", "llama", seed=0)


@pytest.fixture(scope="module")
def weights_folder(folder, tmp_path_factory):
    from llm_decoder.convert import convert

    target = tmp_path_factory.mktemp("converted") / "weights"
    convert(folder, target)
    return target


@pytest.fixture
def decoder(folder):
    decoder = INT8Decoder(threads=1)
    decoder.load_weights(folder)
    decoder.quantize_weights()
    return decoder


def test_generate_gives_what_llm_gives(decoder, folder):
    with LLM(folder, cache_dir=None) as llm:
        params = SamplingParams(max_tokens=20, temperature=0, ignore_eos=True)
        expected = llm.generate([PROMPT], params)[0].outputs[0].token_ids
    assert decoder.generate(PROMPT, max_tokens=20) == expected
    assert decoder.info()["kv_cache_dtype"] == "int8"


def test_float_weights_are_computed_in_float(folder):
    decoder = INT8Decoder()
    decoder.load_weights(folder)
    with LLM(folder, dtype="float32") as llm:
        expected = llm.generate([PROMPT], SamplingParams(max_tokens=20, temperature=0, ignore_eos=True))[0]
    assert decoder.generate(PROMPT, max_tokens=20) == expected.outputs[0].token_ids
    assert decoder.info()["kv_cache_dtype"] == "float32"


def test_bfloat16_weights_are_computed_in_float_and_keep_pages_in_bfloat16(folder):
    decoder = INT8Decoder()
    decoder.load_weights(folder, dtype="bfloat16")
    with LLM(folder, dtype="bfloat16") as llm:
        expected = llm.generate([PROMPT], SamplingParams(max_tokens=20, temperature=0, ignore_eos=True))[0]
    assert decoder.generate(PROMPT, max_tokens=20) == expected.outputs[0].token_ids
    assert (decoder.info()["layout"], decoder.info()["kv_cache_dtype"]) == ("bf16", "bfloat16")
    with pytest.raises(ConfigError, match="float32 or bfloat16"):
        decoder.load_weights(folder, dtype="float16")


def test_a_checkpoint_in_bfloat16_is_not_widened_unless_asked(tmp_path):
    decoder = INT8Decoder()
    decoder.load_weights(make_checkpoint(tmp_path, "llama", dtype="BF16"))
    assert (decoder.info()["layout"], decoder.info()["kv_cache_dtype"]) == ("bf16", "bfloat16")
    decoder.load_weights(tmp_path, dtype="float32")
    assert (decoder.info()["layout"], decoder.info()["kv_cache_dtype"]) == ("f32", "float32")


def test_quantized_weights_give_the_same_tokens_from_disk(decoder, weights_folder):
    other = INT8Decoder()
    other.load_weights(weights_folder)
    other.quantize_weights()
    assert other.generate(PROMPT) == decoder.generate(PROMPT)
    for path in (weights_folder, weights_folder / "int8"):
        other.load_quantized_weights(path)
        assert other.generate(PROMPT) == decoder.generate(PROMPT)


def test_a_loop_of_ones_own_gives_what_generate_gives(decoder):
    expected = decoder.generate(PROMPT, max_tokens=5)
    cache = decoder.cache
    seq_id, n_cached = cache.admit(np.array(PROMPT, np.int32))
    pending, found = PROMPT[n_cached:], []
    for _ in range(5):
        ids, counts = np.array([seq_id], np.int64), np.array([len(pending)], np.int32)
        assert cache.reserve(ids, counts)
        logits = decoder.step(pending, [seq_id], [len(pending)], [1])
        assert (logits.shape, logits.dtype) == ((1, decoder.config.vocab_size), np.float32)
        assert decoder.hidden().shape == (1, decoder.config.hidden_size)
        cache.commit(ids, counts, np.array(pending, np.int32))
        pending = [int(logits[0].argmax())]
        found += pending
    cache.release(seq_id)
    assert found == expected


def test_sampling_fields_are_taken_and_end_tokens_end_the_answer(decoder):
    first = decoder.generate(PROMPT, max_tokens=6)
    assert decoder.generate(PROMPT, max_tokens=6, stop_token_ids=[first[2]]) == first[: first.index(first[2]) + 1]
    sampled = decoder.generate(PROMPT, max_tokens=6, temperature=1.0, seed=3)
    assert sampled == decoder.generate(PROMPT, max_tokens=6, temperature=1.0, seed=3)


def test_int4_weights_give_what_llm_gives_with_them(decoder, folder):
    as_int8 = decoder.generate(PROMPT, max_tokens=20)
    decoder.quantize_weights("int4")
    with LLM(folder, quantization="int4") as llm:
        expected = llm.generate([PROMPT], SamplingParams(max_tokens=20, temperature=0, ignore_eos=True))[0]
    assert decoder.generate(PROMPT, max_tokens=20) == expected.outputs[0].token_ids
    assert decoder.generate(PROMPT, max_tokens=20) != as_int8
    assert decoder.info()["kv_cache_dtype"] == "int8"
    with pytest.raises(ConfigError, match="need int8 or int4, got 'int3'"):
        decoder.quantize_weights("int3")


def test_verbs_without_weights_say_what_to_call_first(folder):
    decoder = INT8Decoder()
    with pytest.raises(InvalidRequestError, match="load_weights"):
        decoder.generate(PROMPT)
    with pytest.raises(InvalidRequestError, match="load_weights first"):
        decoder.quantize_weights()
    with pytest.raises(ModelNotFoundError, match="needs int8 weights"):
        decoder.load_quantized_weights(folder)


@pytest.mark.parametrize("field", [{"bad_words": ["x"]}, {"stop": "x"}, {"n": 2}, {"logprobs": 1}])
def test_what_needs_text_or_an_engine_is_refused_not_ignored(decoder, field):
    with pytest.raises(InvalidRequestError, match=next(iter(field))):
        decoder.generate(PROMPT, **field)


def test_a_decoder_can_be_closed_and_loaded_again(decoder, folder):
    first = decoder.generate(PROMPT)
    decoder.close()
    with pytest.raises(InvalidRequestError, match="needs weights"):
        decoder.generate(PROMPT)
    decoder.load_weights(folder)
    decoder.quantize_weights()
    assert decoder.generate(PROMPT) == first


@pytest.mark.parametrize("tokens", [[1.5], [1 << 40], ["1"], [[1]], [True]])
def test_step_refuses_tokens_that_are_no_int32_rather_than_round_them(decoder, tokens):
    seq_id, _ = decoder.cache.admit(np.array([1], np.int32))
    decoder.cache.reserve(np.array([seq_id]), np.array([1], np.int32))
    with pytest.raises(InvalidRequestError, match=r"^\[INT8Decoder.step\] tokens must be"):
        decoder.step(tokens, [seq_id], [1], [1])
    decoder.cache.release(seq_id)


BAD_BATCHES = {
    "a token that the model lacks": ([999], [0], [1], [1]),
    "a sequence that never was": ([1], [77], [1], [1]),
    "a sequence twice": ([1, 1], [0, 0], [1, 1], [1, 1]),
    "more tokens than were reserved": ([1] * 100, [0], [100], [1]),
    "counts that do not add up": ([1, 2], [0], [1], [1]),
    "a count of none": ([1], [0], [-1], [1]),
    "lists of different lengths": ([1], [0], [1], [1, 1]),
    "rows that are not none, one or all": ([1], [0], [1], [5]),
    "no sequence": ([], [], [], []),
    "more than a step takes": ([1] * 1000, [0], [1000], [1]),
}


@pytest.mark.parametrize("case", BAD_BATCHES)
def test_a_batch_that_cannot_be_stepped_is_an_invalid_request_and_a_good_one_still_runs(decoder, case):
    seq_id, _ = decoder.cache.admit(np.array([1], np.int32))
    decoder.cache.reserve(np.array([seq_id]), np.array([1], np.int32))
    tokens, seq_ids, counts, want = BAD_BATCHES[case]
    with pytest.raises(InvalidRequestError):
        decoder.step(tokens, [seq_id if i == 0 else i for i in seq_ids], counts, want)
    assert decoder.step([1], [seq_id], [1], [1]).shape == (1, decoder.config.vocab_size)


def test_weights_that_do_not_fit_the_memory_are_refused_before_they_are_read(
    folder, weights_folder, decoder, monkeypatch
):
    monkeypatch.setattr(fit, "available_memory_bytes", lambda: 10 * 2**20)
    monkeypatch.setattr("llm_decoder.decoders.pack_in_memory", lambda *_: pytest.fail("packed"))
    for load in (
        lambda: decoder.load_weights(folder),
        lambda: decoder.load_quantized_weights(weights_folder),
        decoder.quantize_weights,
    ):
        with pytest.raises(NotEnoughMemoryError, match=r"needs .* this machine has 10 MiB free; try"):
            load()
    assert len(decoder.generate(PROMPT, max_tokens=2)) == 2, "what was loaded before is still there"


def test_a_pool_that_does_not_fit_the_memory_is_refused_with_a_size_that_would(folder):
    decoder = INT8Decoder(kv_cache_bytes=1 << 50)
    with pytest.raises(NotEnoughMemoryError, match="try kv_cache_bytes="):
        decoder.load_weights(folder)


def test_leaving_the_context_closes_it(folder):
    with INT8Decoder(threads=1) as decoder:
        decoder.load_weights(folder)
        assert len(decoder.generate(PROMPT, max_tokens=2)) == 2
    with pytest.raises(InvalidRequestError, match="needs weights"):
        decoder.generate(PROMPT)


@pytest.mark.parametrize("directory", [None, 5, "", "no/such/folder", "a\0b", "x" * 5000, __file__])
@pytest.mark.parametrize("verb", ["load_weights", "load_quantized_weights"])
def test_what_is_no_folder_with_weights_is_an_error_of_ours(verb, directory):
    with pytest.raises(LLMDecoderError, match=r"^\["):
        getattr(INT8Decoder(), verb)(directory)


def test_a_config_beside_the_weights_describes_them(weights_folder, decoder, tmp_path):
    import shutil

    shutil.copytree(weights_folder, tmp_path / "weights")
    shutil.move(tmp_path / "weights" / "config", tmp_path / "config")
    other = INT8Decoder()
    other.load_quantized_weights(tmp_path / "weights")
    assert other.generate(PROMPT) == decoder.generate(PROMPT)
