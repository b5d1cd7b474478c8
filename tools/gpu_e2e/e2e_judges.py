"""Stage of make gpu-e2e: the tokens, logits and beams of the GPU are those of HF transformers on the same GPU.

Random checkpoints of every family, tiny ones and such as real kernels want, in each dtype, layout of weights and dtype
of pages; and the embedded model's stories beside INT8Decoder. What transformers computes in float32, with the weights
as the floats that their packed form stands for, judges (teacher-forced: it is given our tokens): logits may be off by
twice what rounding alone does to the NumPy reference (tests/rounded_reference.py), and a token must be the judge's
wherever the gap between its two best is larger than twice that."""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import e2e_stage
import numpy as np
from answer_judge import AnswerJudge, log_softmax
from e2e_stage import Row
from models_factory import make_checkpoint
from tiny_gpu_decoder import Judge, as_seen

from llm_decoder import LLM, SamplingParams, SearchParams
from llm_decoder.embedded import embedded_model
from llm_decoder.loading import open_checkpoint
from llm_decoder.model_config import weight_shapes
from llm_decoder.models import tensor_names

LIMIT_S = 90.0
# float32 sums in another order than the NumPy reference's float64, over a handful of layers.
REFERENCES_APART = 1e-3
N_TOP = 5

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {},
    "small": {
        "hidden_size": 512,
        "intermediate_size": 1376,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 4099,
    },
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 24},
    "qwen2": {},
    "qwen3": {},
}
STORED = {"bfloat16": "BF16", "float16": "F16"}
SEEN_AS = {"none": "half", "int8": "w8", "int4": "w4", "fp8": "f8"}  # by tiny_gpu_decoder.as_seen
PAGES = {"fp8": "fp8", "int8": "s8"}  # by rounded_reference; "auto": as the dtype
STORIES = ("Once upon a time", "The little dog and the red ball", "One day a girl named Sue")


@dataclass(frozen=True)
class Case:
    """kv_cache_dtype: "auto", "fp8" or "int8". prompts: how many tokens each has; the last takes several steps."""

    family: str
    size: str = "tiny"
    dtype: str = "bfloat16"
    quantization: str = "none"
    kv_cache_dtype: str = "auto"
    prompts: tuple[int, ...] = (1, 5, 40, 150)
    n_new: int = 32
    max_tokens_per_step: int = 96
    width: int = 4

    @property
    def name(self) -> str:
        return "-".join((self.family, self.size, self.dtype, self.quantization, f"kv_{self.kv_cache_dtype}"))

    @property
    def page_dtype(self) -> str:
        return PAGES.get(self.kv_cache_dtype, {"bfloat16": "bf16", "float16": "f16"}[self.dtype])


def cases() -> list[Case]:
    """Every family with everything that is said once of each: rows that share nothing fail one by one."""
    found = []
    for family in FAMILIES:
        found += [Case(family, dtype=dtype) for dtype in STORED]
        found += [Case(family, quantization=quantization) for quantization in ("int8", "int4", "fp8")]
        found += [Case(family, kv_cache_dtype=kv) for kv in PAGES]
        found += [Case(family, "small", prompts=(1, 70, 130, 300))]
    found += [
        Case("llama", "small", dtype="float16"),
        Case("qwen3", "small", quantization="int4", kv_cache_dtype="int8"),
    ]
    return found


class Theirs:
    """A checkpoint in transformers, in float32, with weights as a packed form has them."""

    def __init__(self, torch: Any, folder: Path, seen: Mapping[str, np.ndarray], names: Mapping[str, str], device: str):
        import transformers

        transformers.utils.logging.disable_progress_bar()
        torch.set_float32_matmul_precision("highest")  # no TF32 in what judges
        self.torch, self.device = torch, device
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )
        model.generation_config.eos_token_id = None
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for ours, values in seen.items():
                parameters[names[ours]].copy_(torch.from_numpy(np.ascontiguousarray(values, np.float32)))
        self.model = model.eval().to(device)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """float64 [n_tokens, vocab_size]"""
        with self.torch.no_grad():
            found = self.model(self.torch.tensor([list(ids)], device=self.device)).logits[0]
        return np.asarray(found.double().cpu().numpy())

    def beams(self, ids: Sequence[int], width: int, n_new: int) -> list[list[int]]:
        prompt = self.torch.tensor([list(ids)], device=self.device)
        with self.torch.no_grad():
            found = self.model.generate(
                prompt,
                attention_mask=self.torch.ones_like(prompt),
                do_sample=False,
                num_beams=width,
                num_return_sequences=width,
                max_new_tokens=n_new,
                pad_token_id=0,
            )
        return [[int(token) for token in row] for row in found[:, len(ids) :].tolist()]


def judge_case(torch: Any, case: Case, device: str = "cuda") -> dict[str, Any]:
    """The row of a case: how far its largest error is from what was allowed, and how much was compared. device: where
    torch computes. Raises AssertionError."""
    with tempfile.TemporaryDirectory() as name:
        settings = SIZES[case.size] | FAMILIES[case.family]
        folder = make_checkpoint(Path(name), case.family, seed=3, dtype=STORED[case.dtype], **settings)
        checkpoint = open_checkpoint(folder, None)
        config = checkpoint.config
        weights = {weight: checkpoint.read(weight) for weight in weight_shapes(config)}
        seen = as_seen(weights, SEEN_AS[case.quantization], case.dtype)
        theirs = Theirs(torch, folder, seen, tensor_names(config), device)
        rng = np.random.RandomState(7)
        prompts = [rng.randint(2, config.vocab_size, size=n).tolist() for n in case.prompts]
        with LLM(
            folder,
            device="cuda",
            dtype=case.dtype,
            quantization=case.quantization,
            kv_cache_dtype=case.kv_cache_dtype,
            kv_cache_bytes=64 << 20,
            max_tokens_per_step=case.max_tokens_per_step,
            cache_dir=folder / "packed",
        ) as llm:
            reference = AnswerJudge(folder, SEEN_AS[case.quantization], case.dtype, case.page_dtype)
            judges = _Judges(reference, theirs)
            _check_greedy(llm, judges, prompts, case.n_new)
            _check_beams(llm, judges, prompts[-2], case)
        return judges.facts


class _Judges:
    """Makes the judge of any tokens, and notes how near to its bounds they came."""

    def __init__(self, reference: AnswerJudge, theirs: Theirs) -> None:
        self._reference, self.theirs = reference, theirs
        self.facts: dict[str, Any] = {"n_tokens": 0, "n_clear": 0, "worst_share_of_bound": 0.0, "bound": 0.0}

    def of(self, ids: Sequence[int]) -> Judge:
        """What transformers says, with the bounds of the reference. Raises AssertionError where they are apart."""
        judge = self._reference.of(ids)
        theirs = self.theirs.logits(ids)
        apart = float(np.abs(theirs - judge.want).max() / np.abs(judge.want).max())
        assert apart <= REFERENCES_APART, f"transformers and the NumPy reference are {apart:.2g} apart"
        judge.want = theirs
        return judge

    def note(self, judge: Judge, got: np.ndarray, want: np.ndarray) -> None:
        share = float(np.abs(got - want).max()) / judge.most
        self.facts["worst_share_of_bound"] = max(self.facts["worst_share_of_bound"], share)
        self.facts["bound"] = max(self.facts["bound"], judge.most)


def _check_greedy(llm: LLM, judges: _Judges, prompts: Sequence[list[int]], n_new: int) -> None:
    """All prompts at once: chunks, whole prompts and decodes in the same steps. Then the same tokens as prompts."""
    params = SamplingParams(max_tokens=n_new, temperature=0.0, ignore_eos=True, logprobs=N_TOP)
    outputs = llm.generate(list(prompts), params)
    for prompt, output in zip(prompts, outputs, strict=True):
        answer = output.outputs[0]
        ids = prompt + list(answer.token_ids)
        judge = judges.of(ids)
        want = judge.want[len(prompt) - 1 : -1]
        judges.facts["n_clear"] += check_tokens(want, answer.token_ids, judge.most)
        judges.facts["n_tokens"] += len(answer.token_ids)
        assert answer.logprobs is not None
        for row, entry in zip(log_softmax(want), answer.logprobs, strict=True):
            off = max(abs(logprob - row[token]) for token, logprob in entry.top)
            assert off <= 2.0 * judge.most, f"a log probability is off by {off:.3g}, {2.0 * judge.most:.3g} is allowed"
        got = llm.logits(ids).astype(np.float64)
        judges.note(judge, got, judge.want)
        judge.check(got)


def check_tokens(want: np.ndarray, tokens: Sequence[int], most: float) -> int:
    """How many of the tokens had to be the best of `want` [n_tokens, vocab_size], logits that ours are off from by
    `most`.

    Raises AssertionError for one that is not.
    """
    second, first = np.sort(want, axis=-1)[:, -2:].T
    is_clear = first - second > 2.0 * most
    is_wrong = is_clear & (want.argmax(axis=-1) != np.asarray(tokens))
    assert not is_wrong.any(), f"token {int(is_wrong.argmax())} is not the best, by a gap of more than {2.0 * most:.3g}"
    return int(is_clear.sum())


def _check_beams(llm: LLM, judges: _Judges, prompt: list[int], case: Case) -> None:
    """Each answer's score is the judge's of the same tokens, and the best one is no worse than transformers' best, by
    more than the errors of so many tokens."""
    n_new = min(case.n_new, 12)
    params = SearchParams(width=case.width, n=case.width, max_tokens=n_new, ignore_eos=True)
    answers = llm.search([prompt], params)[0].outputs
    theirs = judges.theirs.beams(prompt, case.width, n_new)
    scores = []
    for tokens in [list(answer.token_ids) for answer in answers] + theirs:
        rows = log_softmax(judges.theirs.logits(prompt + tokens)[len(prompt) - 1 : -1])
        scores.append(float(sum(row[token] for row, token in zip(rows, tokens, strict=True))))
    allowed = 2.0 * judges.facts["bound"] * n_new
    for answer, score in zip(answers, scores, strict=False):
        off = abs(answer.cumulative_logprob - score)
        assert off <= allowed, f"a beam's log probability is off by {off:.3g}, {allowed:.3g} is allowed"
    ours, best = scores[0], max(scores[len(answers) :])
    assert ours >= best - 2.0 * allowed, f"the best beam has {ours:.4g}, transformers found one of {best:.4g}"
    judges.facts["n_beams"] = len(answers)
    judges.facts["n_beams_as_theirs"] = sum(list(answer.token_ids) in theirs for answer in answers)


def judge_stories(quantization: str = "int8", n_new: int = 120, n_stories: int = len(STORIES)) -> dict[str, Any]:
    """The embedded model's stories: each token is INT8Decoder's wherever its gap is larger than what both may be off
    by. The latter is measured for INT8Decoder, against the NumPy reference."""
    reference = AnswerJudge(embedded_model(), SEEN_AS[quantization])
    facts: dict[str, Any] = {"n_tokens": 0, "n_clear": 0, "n_as_int8_decoder": 0, "texts": []}
    params = SamplingParams(max_tokens=n_new, temperature=0.0, ignore_eos=True)
    with (
        LLM(device="cpu", quantization="int8", kv_cache_dtype="float32") as cpu,
        LLM(device="cuda", quantization=quantization, kv_cache_bytes=64 << 20, max_num_seqs=1) as gpu,
    ):
        for prompt in STORIES[:n_stories]:
            output = gpu.generate(prompt, params)[0]
            tokens = list(output.outputs[0].token_ids)
            ids = list(output.prompt_token_ids) + tokens
            judge = reference.of(ids)
            judge.check(gpu.logits(ids).astype(np.float64))
            theirs = cpu.logits(ids).astype(np.float64)
            most = judge.most + float(np.abs(theirs - judge.want).max())
            begin = len(output.prompt_token_ids) - 1
            facts["n_clear"] += check_tokens(theirs[begin:-1], tokens, most)
            facts["n_as_int8_decoder"] += int((theirs[begin:-1].argmax(axis=-1) == np.asarray(tokens)).sum())
            facts["n_tokens"] += len(tokens)
            facts["texts"].append((prompt + output.outputs[0].text)[:100])
    return facts


def rows() -> dict[str, Row]:
    """Raises NoDevice."""
    from gpu_clock import load_torch

    torch = load_torch()
    made = {f"judge-{case.name}": Row(functools.partial(judge_case, torch, case), LIMIT_S) for case in cases()}
    return made | {"judge-stories": Row(judge_stories, LIMIT_S)}


def main() -> int:
    return e2e_stage.run_stage(rows, e2e_stage.arguments(__doc__.splitlines()[0]).parse_args())


if __name__ == "__main__":
    sys.exit(main())
