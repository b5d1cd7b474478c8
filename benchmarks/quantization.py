"""What quantisation costs in quality: perplexity, and the divergence of the predictions from those of float32.

    python benchmarks/quantization.py stories.txt                     # documents are parted by empty lines
    python benchmarks/quantization.py stories.txt --model FOLDER --json quantization.json

Perplexity is exp of the mean negative log probability of every token after the first of each document. KL is the mean
over the same tokens of sum p log(p / q) in nats, where p are the probabilities of float32 and q those of the variant.

Besides what the engine does, weights rounded in other ways are measured: the checkpoint's matrices but for the
embedding and the output layer are rounded, written out as float32 and computed with in float32.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from llm_decoder import LLM, _core
from llm_decoder.loading import find_model
from llm_decoder.safetensors_file import SafetensorsFile

Floats = npt.NDArray[np.float32]
GROUP = 32
# Core names of the matrices of a layer, and the checkpoint's names of their parts.
LAYER_PARTS = {
    "attn_qkv": ("q_proj", "k_proj", "v_proj"),
    "attn_o": ("o_proj",),
    "mlp_gate_up": ("gate_proj", "up_proj"),
    "mlp_down": ("down_proj",),
}
OUTER_PARTS = ("embed_tokens", "lm_head")


@dataclass
class Result:
    variant: str
    bits: float  # of a weight in the rounded matrices, scales included
    perplexity: float
    loss_percent: float  # of perplexity against float32
    kl: float


def w4_searched(w: Floats) -> Floats:
    q, group_scale, group_min, scale = _core.quantize_weight_groups(w)
    return _core.expand_w4(_core.pack_w4(q, group_scale, group_min), *w.shape) * scale[:, None]


def w4_rounded(w: Floats) -> Floats:
    """The same format with each group from its minimum to its maximum, nothing searched."""
    scale = np.abs(w).max(axis=1, keepdims=True) / 127
    scale[scale == 0] = 1
    groups = (w / scale).reshape(len(w), -1, GROUP)
    low, high = groups.min(axis=2, keepdims=True), groups.max(axis=2, keepdims=True)
    step = np.clip(np.ceil((high - low) / 15), 1, 16)
    minimum = np.clip(np.rint((low + high - 15 * step) / 2), -127, 127 - 15 * step)
    return ((np.clip(np.rint((groups - minimum) / step), 0, 15) * step + minimum).reshape(w.shape) * scale).astype(
        np.float32
    )


def float16_scale_and_minimum(w: Floats) -> Floats:
    """Each group from its minimum to its maximum, both as float16: 5 bits a weight."""
    groups = w.reshape(-1, GROUP)
    low = half(groups.min(axis=1, keepdims=True))
    step = half((groups.max(axis=1, keepdims=True) - low) / 15)
    step[step == 0] = 1
    return (np.clip(np.rint((groups - low) / step), 0, 15) * step + low).reshape(w.shape)


def float16_scale(w: Floats) -> Floats:
    """16 steps of one float16 scale, of which the largest magnitude is the -8th (llama.cpp's Q4_0)."""
    groups = w.reshape(-1, GROUP)
    largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=1)[:, None], axis=1)
    step = half(largest / -8)
    step[step == 0] = 1
    return (np.clip(np.rint(groups / step), -8, 7) * step).reshape(w.shape)


def fp8_rows(w: Floats) -> Floats:
    """fp8 (e4m3) with a scale a row, as GPUs have it."""
    import ml_dtypes

    scale = np.abs(w).max(axis=1, keepdims=True) / np.float32(448)
    scale[scale == 0] = 1
    return (w / scale).astype(ml_dtypes.float8_e4m3fn).astype(np.float32) * scale


def int8_rows(w: Floats) -> Floats:
    q, scale = _core.quantize_weight_rows(w)
    return q.astype(np.float32) * scale[:, None]


def half(x: Floats) -> Floats:
    return x.astype(np.float16).astype(np.float32)


def write_rounded(source: Path, folder: Path, rounded: Callable[[Floats], Floats], parts: tuple[str, ...]) -> Path:
    """A copy of the checkpoint in float32 with the matrices `parts` of all layers rounded."""
    weights = {}
    for shard in sorted(source.glob("*.safetensors")):
        file = SafetensorsFile(shard)
        for name in file.entries:
            weight = file.rows(name)
            is_part = weight.ndim == 2 and name.split(".")[-2] in parts
            weights[name] = np.ascontiguousarray(rounded(weight) if is_part else weight, dtype=np.float32)
    save_file(weights, folder / "model.safetensors")
    for path in source.glob("*.json"):
        if path.name != "model.safetensors.index.json":
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def log_probs(logits: Floats) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


class Judge:
    """Holds the documents and what float32 predicts for them."""

    def __init__(self, model: Path, texts: list[str], max_tokens: int) -> None:
        with LLM(model, dtype="float32") as llm:
            documents = [ids for ids in map(llm.tokenizer.encode, texts) if 2 <= len(ids) <= llm.max_model_len]
            n_tokens = np.cumsum([len(ids) for ids in documents])
            self.documents = documents[: max(1, int(np.searchsorted(n_tokens, max_tokens)))]
            self._reference = [llm.logits(ids)[:-1] for ids in self.documents]
        self.n_predicted = sum(len(logits) for logits in self._reference)
        self.perplexity = self._perplexity_and_kl(self._reference)[0]

    def judge(self, variant: str, bits: float, model: Path, **options: Any) -> Result:
        with LLM(model, **options) as llm:
            perplexity, kl = self._perplexity_and_kl(llm.logits(ids)[:-1] for ids in self.documents)
        return Result(variant, bits, perplexity, 100 * (perplexity / self.perplexity - 1), kl)

    def _perplexity_and_kl(self, logits_of_documents: Any) -> tuple[float, float]:
        loss = kl = 0.0
        for ids, logits, reference in zip(self.documents, logits_of_documents, self._reference, strict=True):
            q, p = log_probs(logits), log_probs(reference)
            loss -= q[np.arange(len(q)), ids[1:]].sum()
            kl += (np.exp(p) * (p - q)).sum()
        return float(np.exp(loss / self.n_predicted)), kl / self.n_predicted


ENGINE = (
    ("float32, KV float32", 32, {"dtype": "float32"}),
    ("float32, KV int8", 32, {"dtype": "float32", "kv_cache_dtype": "int8"}),
    ("int8, KV float32", 8, {"quantization": "int8", "kv_cache_dtype": "float32"}),
    ("int8, KV int8 (the default)", 8, {"quantization": "int8"}),
    ("int4, KV float32", 4.5, {"quantization": "int4", "kv_cache_dtype": "float32"}),
    ("int4, KV int8", 4.5, {"quantization": "int4"}),
)
ROUNDINGS = (
    ("W4, scale and minimum searched (ours)", 4.5, w4_searched),
    ("W4, rounded to nearest", 4.5, w4_rounded),
    ("float16 scale and minimum, to nearest", 5, float16_scale_and_minimum),
    ("float16 scale, to nearest (Q4_0)", 4.5, float16_scale),
    ("int8, a scale a row", 8, int8_rows),
    ("fp8, a scale a row", 8, fp8_rows),
)
OUTER_ROUNDINGS = (("W4", 4.5, w4_searched), ("int8", 8, int8_rows), ("fp8", 8, fp8_rows))


def results(judge: Judge, model: Path) -> Iterator[Result]:
    for variant, bits, options in ENGINE:
        yield judge.judge(variant, bits, model, **options)
    every_part = tuple(part for parts in LAYER_PARTS.values() for part in parts)
    kinds = [(f"weights alone: {name}", bits, rounded, every_part) for name, bits, rounded in ROUNDINGS]
    kinds += [(f"W4 in {name} alone", 4.5, w4_searched, parts) for name, parts in LAYER_PARTS.items()]
    kinds += [
        (f"{name} in the embedding and the output layer alone", bits, rounded, OUTER_PARTS)
        for name, bits, rounded in OUTER_ROUNDINGS
    ]
    for variant, bits, rounded, parts in kinds:
        with tempfile.TemporaryDirectory() as folder:
            yield judge.judge(variant, bits, write_rounded(model, Path(folder), rounded, parts), dtype="float32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path, help="a text file, documents parted by empty lines")
    parser.add_argument("--model", help="a Hugging Face folder; the embedded model without")
    parser.add_argument("--max-tokens", type=int, default=20_000, help="of all documents together")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write the results here")
    args = parser.parse_args()

    model = find_model(args.model)
    judge = Judge(model, args.texts.read_text(encoding="utf-8").strip().split("\n\n"), args.max_tokens)
    print(f"{len(judge.documents)} documents, {judge.n_predicted} predicted tokens\n")
    print("| variant | bits | perplexity | against float32 | KL, nats |\n|---|---:|---:|---:|---:|")
    found = []
    for result in results(judge, model):
        found.append(result)
        print(
            f"| {result.variant} | {result.bits:g} | {result.perplexity:.3f} | {result.loss_percent:+.2f} % "
            f"| {result.kl:.5f} |",
            flush=True,
        )
    if args.json:
        report = {"n_documents": len(judge.documents), "n_predicted_tokens": judge.n_predicted}
        args.json.write_text(json.dumps(report | {"results": [asdict(result) for result in found]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
