"""RoBERTa (Liu et al. 2019), XLM-R and CamemBERT: BERT with positions that begin behind the padding's, another head."""

from __future__ import annotations

from llm_decoder.encoders.bert import read_common, tensor_names
from llm_decoder.encoders.config import EncoderConfig
from llm_decoder.encoders.head import HeadConfig
from llm_decoder.models.fields import Fields

__all__ = ["INERT", "PREFIX", "UNUSED", "config_from_hf", "head_from_hf", "head_names", "tensor_names"]

PREFIX = "roberta."
UNUSED = ("pooler.", "lm_head.", "embeddings.position_ids", "embeddings.token_type_ids")
INERT: tuple[str, ...] = ("output_past",)


def config_from_hf(fields: Fields) -> tuple[EncoderConfig, int]:
    """A RoBERTa config.json as knobs, and the tokens that it can read."""
    first = fields.integer("pad_token_id", 0, default=1) + 1
    config = read_common(fields, default_n_types=2, position_offset=first)
    return config, config.max_model_len


def head_from_hf(fields: Fields) -> HeadConfig:
    """Dense, tanh and the classifier over <s>."""
    return HeadConfig(activation="tanh")


def head_names(head: HeadConfig) -> dict[str, str]:
    """Our name -> the checkpoint's name of each weight of the head."""
    return {
        "head_dense": "classifier.dense.weight",
        "head_dense.bias": "classifier.dense.bias",
        "classifier": "classifier.out_proj.weight",
        "classifier.bias": "classifier.out_proj.bias",
    }
