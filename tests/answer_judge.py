"""What judges the answers of an LLM on a GPU: the NumPy reference over the same checkpoint, fed with each answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tiny_gpu_decoder import Judge

from llm_decoder import LLM
from llm_decoder.model_config import weight_shapes
from llm_decoder.outputs import Completion
from llm_decoder.safetensors_checkpoint import SafetensorsCheckpoint

POOL_BYTES = 1 << 20


def open_gpu(folder: Path, **options: Any) -> LLM:
    """On the host machine, with a pool that it fills in no time and few graphs to record."""
    return LLM(folder, **{"device": "cuda", "kv_cache_bytes": POOL_BYTES, "max_num_seqs": 4, **options})


class AnswerJudge:
    """layout: half, w8, w4 or f8. dtype: of the rows. kv_dtype: of the pages, bf16, f16, fp8 or s8."""

    def __init__(self, folder: Path, layout: str = "half", dtype: str = "bfloat16", kv_dtype: str = "bf16") -> None:
        checkpoint = SafetensorsCheckpoint(folder)
        self._config = checkpoint.config.to_core()
        self._weights = {name: checkpoint.read(name) for name in weight_shapes(checkpoint.config)}
        self._seen_as = {"layout": layout, "dtype": dtype, "kv_dtype": kv_dtype}

    def of(self, tokens: Sequence[int]) -> Judge:
        return Judge(self._config, self._weights, tokens, **self._seen_as)

    def check_logits(self, tokens: Sequence[int], logits: np.ndarray) -> None:
        self.of(tokens).check(logits)

    def check_scores(self, prompt: Sequence[int], answer: Completion) -> None:
        """The log probability of each of its tokens; a softmax moves by no more than twice what its logits do."""
        judge = self.of([*prompt, *answer.token_ids])
        assert answer.logprobs is not None
        got = [entry.logprob for entry in answer.logprobs]
        want = log_softmax(judge.want)[np.arange(len(prompt) - 1, len(judge.want) - 1), answer.token_ids]
        np.testing.assert_allclose(got, want, rtol=0, atol=2.0 * judge.most)

    def check_greedy(self, prompt: Sequence[int], answer: Completion) -> int:
        """Each token is the best of the reference, where its two best are further apart than both may be off. Returns
        how many are."""
        judge = self.of([*prompt, *answer.token_ids])
        rows = judge.want[len(prompt) - 1 : -1]
        second, first = np.sort(rows, axis=-1)[:, -2:].T
        is_clear = first - second > 2.0 * judge.most
        assert np.array_equal(np.array(answer.token_ids)[is_clear], rows.argmax(axis=-1)[is_clear])
        return int(is_clear.sum())


def log_softmax(rows: np.ndarray) -> np.ndarray:
    shifted = rows - rows.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
