"""The public CUDADecoder: the verbs of INT8Decoder, over a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answer_judge import POOL_BYTES, AnswerJudge, open_gpu

from llm_decoder import CUDADecoder, INT8Decoder, SamplingParams, decoders
from llm_decoder.convert import convert
from llm_decoder.errors import BackendError, ConfigError, InvalidRequestError, NotEnoughMemoryError

PROMPT = list(range(1, 40))
GREEDY = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)


@pytest.fixture
def decoder(folder: Path) -> CUDADecoder:
    decoder = CUDADecoder(kv_cache_bytes=POOL_BYTES, deterministic=True)
    decoder.load_weights(folder)
    return decoder


def test_it_has_the_verbs_of_the_decoder_of_the_cpu() -> None:
    def verbs(of: type) -> set[str]:
        return {name for name in dir(of) if not name.startswith("_")}

    assert verbs(CUDADecoder) == verbs(INT8Decoder)


@pytest.mark.parametrize("quantization", ["none", "int8", "int4", "fp8"])
def test_generate_gives_what_llm_gives(decoder: CUDADecoder, folder: Path, quantization: str) -> None:
    if quantization != "none":
        decoder.quantize_weights(quantization)
    with open_gpu(folder, deterministic=True, quantization=quantization) as llm:
        expected = llm.generate([PROMPT], GREEDY)[0].outputs[0].token_ids
    assert decoder.generate(PROMPT, max_tokens=12) == expected
    layouts = {"none": "gpu_bf16", "int8": "gpu_w8", "int4": "gpu_w4", "fp8": "gpu_f8"}
    assert decoder.info()["layout"] == layouts[quantization]


def test_a_loop_of_ones_own_gives_what_generate_gives(decoder: CUDADecoder, folder: Path) -> None:
    expected = decoder.generate(PROMPT, max_tokens=5)
    cache, judge = decoder.cache, AnswerJudge(folder)
    seq_id, n_cached = cache.admit(np.array(PROMPT, np.int32))
    pending, found = PROMPT[n_cached:], []
    for _ in range(5):
        ids, counts = np.array([seq_id], np.int64), np.array([len(pending)], np.int32)
        assert cache.reserve(ids, counts)
        logits = decoder.step(pending, [seq_id], [len(pending)], [1])
        judge.of(PROMPT + found).check(logits, begin=len(PROMPT + found) - 1)
        assert decoder.hidden().shape == (1, decoder.config.hidden_size)
        cache.commit(ids, counts, np.array(pending, np.int32))
        pending = [int(logits[0].argmax())]
        found += pending
    cache.release(seq_id)
    assert found == expected


def test_the_dtype_that_was_loaded_stays_with_quantised_weights(decoder: CUDADecoder, folder: Path) -> None:
    decoder.load_weights(folder, dtype="float16")
    assert (decoder.info()["layout"], decoder.info()["dtype"]) == ("gpu_f16", "float16")
    decoder.quantize_weights("int4")
    assert (decoder.info()["layout"], decoder.info()["dtype"]) == ("gpu_w4", "float16")


def test_quantized_weights_come_from_disk_too(decoder: CUDADecoder, folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "weights")
    decoder.quantize_weights()
    expected = decoder.generate(PROMPT)
    decoder.load_quantized_weights(tmp_path / "weights")
    assert decoder.generate(PROMPT) == expected


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"device": "cpu"}, ConfigError, r"\[device\] must be cuda, .* got 'cpu'; INT8Decoder is for the CPU"),
        ({"device": "auto"}, ConfigError, "INT8Decoder is for the CPU"),
        ({"device": "cuda:3"}, BackendError, r"cuda:3 cannot be used: there is only cuda"),
        ({"kv_cache_bytes": 1 << 50}, NotEnoughMemoryError, r"bytes too few; try kv_cache_bytes="),
    ],
)
def test_what_it_cannot_have_is_refused(
    folder: Path, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        CUDADecoder(**options).load_weights(folder)


def test_its_messages_name_it(decoder: CUDADecoder, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidRequestError, match=r"^\[CUDADecoder.generate\] needs weights"):
        CUDADecoder().generate(PROMPT)
    with pytest.raises(InvalidRequestError, match=r"^\[CUDADecoder.step\] tokens must be a flat list"):
        decoder.step([[1]], [0], [1], [1])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match=r"float16 on a GPU, got 'float32'; use device='cpu'"):
        decoder.load_weights(folder, dtype="float32")
    monkeypatch.setattr(decoders, "place_on_gpu", lambda *_, **__: pytest.fail("placed"))
    with pytest.raises(ConfigError, match=r"\[CUDADecoder.quantize_weights\] need int8 or int4 or fp8, got 'int3'"):
        decoder.quantize_weights("int3")


def test_leaving_the_context_closes_it(folder: Path) -> None:
    with CUDADecoder(kv_cache_bytes=POOL_BYTES) as decoder:
        decoder.load_weights(folder)
        assert len(decoder.generate(PROMPT, max_tokens=2)) == 2
    with pytest.raises(InvalidRequestError, match="needs weights"):
        decoder.generate(PROMPT)
