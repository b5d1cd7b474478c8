"""Encoders of others, held for benchmarks/encoders.py.

    python drive_encoders.py WEIGHTS.npz ENGINE N_THREADS

Needs torch, sentence-transformers, onnx and onnxruntime. WEIGHTS.npz holds the numbers of a BERT, `config` as JSON
text among them, and its weights under our names. ENGINE is sentence-transformers, onnxruntime-float32 or
onnxruntime-int8. Prints a line that says that it is ready; then answers each line, {"token_ids": [[...], ...],
"n_calls": n}, with {"seconds": [n], "rows": [[...], ...]}: what each call took, and the hidden states of first tokens.
Shorter sequences are padded, as these engines want it.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Features = dict[str, np.ndarray]
OURS = {
    "attention.output.dense": "attn_o",
    "attention.output.LayerNorm": "ln1",
    "intermediate.dense": "mlp_fc1",
    "output.dense": "mlp_fc2",
    "output.LayerNorm": "ln2",
}
TABLES = {
    "word_embeddings.weight": "embedding",
    "position_embeddings.weight": "position_embedding",
    "token_type_embeddings.weight": "type_embedding",
    "LayerNorm.weight": "embedding_norm",
    "LayerNorm.bias": "embedding_norm.bias",
}


def make_bert(weights: dict[str, np.ndarray]) -> Any:
    """transformers' BertModel with these weights."""
    import torch
    from transformers import BertConfig, BertModel

    ours = json.loads(str(weights["config"]))
    config = BertConfig(
        vocab_size=ours["vocab_size"],
        hidden_size=ours["hidden_size"],
        num_hidden_layers=ours["n_layers"],
        num_attention_heads=ours["n_heads"],
        intermediate_size=ours["intermediate_size"],
        max_position_embeddings=ours["n_positions"],
        type_vocab_size=ours["n_types"],
        layer_norm_eps=ours["norm_eps"],
        hidden_act="gelu",
    )
    state = {f"embeddings.{theirs}": weights[name] for theirs, name in TABLES.items()}
    for layer in range(ours["n_layers"]):
        for kind, suffix in (("weight", ""), ("bias", ".bias")):
            parts = np.split(weights[f"layer_{layer}/attn_qkv{suffix}"], 3)
            for name, part in zip(("query", "key", "value"), parts, strict=True):
                state[f"encoder.layer.{layer}.attention.self.{name}.{kind}"] = part
            for theirs, name in OURS.items():
                state[f"encoder.layer.{layer}.{theirs}.{kind}"] = weights[f"layer_{layer}/{name}{suffix}"]
    model = BertModel(config, add_pooling_layer=False)
    model.load_state_dict({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in state.items()})
    return model.eval()


def pad(token_ids: list[list[int]]) -> Features:
    longest = max(len(ids) for ids in token_ids)
    ids = np.zeros((len(token_ids), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, values in enumerate(token_ids):
        ids[row, : len(values)] = values
        mask[row, : len(values)] = 1
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}


def open_sentence_transformers(model: Any, folder: Path) -> Callable[[Features], np.ndarray]:
    """SentenceTransformer's own forward over the model and pooling of the first token."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertTokenizerFast

    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    model.save_pretrained(folder)
    pooling = Pooling(model.config.hidden_size, pooling_mode="cls")
    sentences = SentenceTransformer(modules=[Transformer(str(folder)), pooling], device="cpu").eval()

    def run(features: Features) -> np.ndarray:
        with torch.inference_mode():
            inputs = {name: torch.from_numpy(value) for name, value in features.items()}
            return sentences(inputs)["sentence_embedding"].numpy()

    return run


def open_onnxruntime(model: Any, folder: Path, is_quantized: bool, n_threads: int) -> Callable[[Features], np.ndarray]:
    """The exported model, its matrices quantised dynamically or not."""
    import onnxruntime
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic

    class FirstRow(torch.nn.Module):
        def __init__(self, bert: Any) -> None:
            super().__init__()
            self.bert = bert

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            return self.bert(input_ids, attention_mask, token_type_ids).last_hidden_state[:, 0]

    model.set_attn_implementation("eager")
    path = folder / "model.onnx"
    names = ["input_ids", "attention_mask", "token_type_ids"]
    example = tuple(torch.from_numpy(pad([[1, 2, 3], [4, 5]])[name]) for name in names)
    axes = {name: {0: "batch", 1: "tokens"} for name in names} | {"rows": {0: "batch"}}
    torch.onnx.export(
        FirstRow(model),
        example,
        str(path),
        input_names=names,
        output_names=["rows"],
        dynamic_axes=axes,
        opset_version=17,
        dynamo=False,
    )
    if is_quantized:
        quantize_dynamic(str(path), str(folder / "int8.onnx"), weight_type=QuantType.QInt8, per_channel=True)
        path = folder / "int8.onnx"
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    taken = {item.name for item in session.get_inputs()}
    return lambda features: session.run(["rows"], {k: v for k, v in features.items() if k in taken})[0]


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "sentence-transformers", "onnxruntime")}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    path, engine, n_threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    import torch

    torch.set_num_threads(n_threads)
    with np.load(path) as file:
        model = make_bert(dict(file))
    with tempfile.TemporaryDirectory() as name:
        if engine == "sentence-transformers":
            run = open_sentence_transformers(model, Path(name))
        else:
            run = open_onnxruntime(model, Path(name), engine == "onnxruntime-int8", n_threads)
        print(json.dumps({"ready": {"versions": versions()}}), file=answers, flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            features = pad(request["token_ids"])
            seconds = []
            for _ in range(request["n_calls"]):
                begin = time.perf_counter()
                rows = run(features)
                seconds.append(time.perf_counter() - begin)
            print(json.dumps({"seconds": seconds, "rows": rows.tolist()}), file=answers, flush=True)


if __name__ == "__main__":
    main()
