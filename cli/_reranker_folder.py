"""Which cross-encoder the verbs about rerankers work on."""

from __future__ import annotations

from pathlib import Path


def reranker_folder(given: str | Path | None, config: Path | None) -> Path:
    """That of a flag, of LLM_DECODER_RERANKER, of the settings' paths.json, or the embedded one. config: the settings
    folder of --config.

    Raises ConfigError, ModelNotFoundError.
    """
    from llm_decoder.config.files import load_settings
    from llm_decoder.embedded import embedded_reranker

    return Path(given or load_settings(config).paths.reranker or embedded_reranker())
