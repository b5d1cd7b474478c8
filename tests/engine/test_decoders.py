"""The public INT8Decoder: a loop of one's own."""

import numpy as np
import pytest
from models_factory import make_checkpoint

from llm_decoder import LLM, INT8Decoder, SamplingParams
from llm_decoder.errors import InvalidRequestError, ModelNotFoundError

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
