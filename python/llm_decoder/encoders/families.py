"""The encoder families: one small file each, found by `model_type`.

A family says how config.json becomes knobs (`config_from_hf`, `head_from_hf`) and how the checkpoint names its tensors
(`tensor_names`, `head_names`). config.json is data: nothing it names is ever imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from llm_decoder.encoders import bert, distilbert, modernbert, roberta
from llm_decoder.encoders.config import EncoderConfig
from llm_decoder.encoders.head import HeadConfig
from llm_decoder.errors import UnsupportedModelError
from llm_decoder.models.fields import Fields

__all__ = ["FAMILIES", "EncoderShape", "parse_encoder"]

FAMILIES: dict[str, ModuleType] = {
    "bert": bert,
    "camembert": roberta,
    "distilbert": distilbert,
    "modernbert": modernbert,
    "roberta": roberta,
    "xlm-roberta": roberta,
}
_HEAD_SUFFIX = "ForSequenceClassification"
# What config.json of an encoder may hold beside models/inert.py without changing what it computes.
_INERT = (
    *("classifier_dropout_prob", "cls_token_id", "mask_token_id", "hidden_dropout_prob", "layer_norm_epsilon"),
    *("sentence_transformers", "sbert_ce_default_activation_function", "directionality", "adapters", "ner_labels"),
    "tie_word_embeddings",
    *("pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head", "pooler_type"),
)


@dataclass(frozen=True)
class EncoderShape:
    """A config.json as knobs. tensor_names: our name of each weight -> the checkpoint's names whose rows it is made of,
    without the family's prefix. n_tokens: the longest sequence that the model was made for. architecture: what the file
    calls it, "" when it does not say."""

    model_type: str
    config: EncoderConfig
    head: HeadConfig
    tensor_names: Mapping[str, tuple[str, ...]]
    n_tokens: int
    architecture: str

    @property
    def family(self) -> ModuleType:
        return FAMILIES[self.model_type]

    @property
    def is_classifier(self) -> bool:
        """Whether the file says that it has a head for labels."""
        return self.architecture.endswith(_HEAD_SUFFIX)


def parse_encoder(values: Mapping[str, Any], place: str = "config.json") -> EncoderShape:
    """A parsed config.json as knobs; `place` names the file in errors.

    Raises UnsupportedModelError for a model that is no encoder of these families and for a field that may change what
    it computes and is not understood, MalformedFileError for a missing field or an impossible value.
    """
    fields = Fields(values, place)
    model_type = fields.text("model_type", "")
    architectures = fields.texts("architectures") or []
    if model_type not in FAMILIES:
        raise UnsupportedModelError(_unknown_family(model_type, architectures, values, place))
    if fields.table("quantization_config"):
        raise UnsupportedModelError(
            f"[{place}: quantization_config] quantised encoders are not read by this build; use the float checkpoint, "
            "it is quantised to int8 on load"
        )
    family = FAMILIES[model_type]
    fields.only("is_decoder", (False,), False)
    fields.only("position_embedding_type", ("absolute",), "absolute")
    config, n_tokens = family.config_from_hf(fields)
    head = family.head_from_hf(fields)
    names = family.tensor_names(config, fields)
    fields.ignore(*_INERT, *family.INERT)
    fields.finish()
    return EncoderShape(model_type, config, head, names, n_tokens, architectures[0] if architectures else "")


def _unknown_family(model_type: str, architectures: list[str], values: Mapping[str, Any], place: str) -> str:
    what = f"{model_type[:60]!r}" if model_type else "none"
    if any(name.endswith(("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")) for name in architectures):
        what += f" (a language model, {architectures[0][:60]})"
    code = " Its auto_map names Python code, which is never run." if "auto_map" in values else ""
    return f"[{place}: model_type] need an encoder of {', '.join(sorted(FAMILIES))}, got {what}.{code}"
