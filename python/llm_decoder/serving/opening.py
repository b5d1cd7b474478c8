"""Settings files and the environment become a model to open and a server's settings."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_decoder.errors import ConfigError

if TYPE_CHECKING:
    from llm_decoder.config.schema import Settings
    from llm_decoder.serving.service import Service
    from llm_decoder.serving.settings import ServerSettings

__all__ = ["engine_arguments", "read_keys", "server_settings", "service_from_environment"]


def engine_arguments(settings: Settings, given: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `LLM`: `given` over the settings. What nobody gave is left out."""
    from llm_decoder.config.files import describing_folder

    named = {
        "model": settings.paths.model or (settings.paths.weights and Path(settings.paths.weights)),
        "tokenizer": settings.paths.tokenizer,
        "reranker": settings.paths.reranker,
        "embedder": settings.paths.embedder,
        "cache_dir": settings.paths.cache,
        "chat_template": settings.chat.template,
        "system": settings.chat.system,
        "sampling_defaults": settings.runtime.sampling_defaults(),
    }
    found = {name: value for name, value in named.items() if value}
    arguments = found | settings.runtime.engine_arguments() | dict(given)
    config_dir = describing_folder(settings, arguments.get("model"))
    return arguments if config_dir is None else arguments | {"config_dir": config_dir}


def server_settings(settings: Settings, given: Mapping[str, Any], **defaults: Any) -> ServerSettings:
    """ServerSettings' fields of `given` over the settings over `defaults`. Raises ConfigError."""
    from llm_decoder.serving.settings import ServerSettings

    keys = {} if settings.runtime.api_key_file is None else {"api_keys": read_keys(settings.runtime.api_key_file)}
    return ServerSettings(**(defaults | settings.runtime.server_arguments() | keys | dict(given)))


def read_keys(path: str | Path) -> tuple[str, ...]:
    """API keys, one a line; what begins with # is for people. Raises ConfigError: a file without a key would open the
    server to everybody."""
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError, RuntimeError) as error:
        raise ConfigError(
            f"[api_key_file] {path} cannot be read: {getattr(error, 'strerror', None) or error}"
        ) from None
    keys = tuple(line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#"))
    if not keys:
        raise ConfigError(f"[api_key_file] need a key a line, got none in {path}")
    return keys


def service_from_environment() -> Service:
    """What LLM_DECODER_* and the settings files ask for, not started. Raises ConfigError."""
    from llm_decoder.config.files import load_settings
    from llm_decoder.serving.memory import share_one_heap
    from llm_decoder.serving.service import Service

    share_one_heap()
    environment = os.environ
    settings = load_settings(environment.get("LLM_DECODER_CONFIG") or None)
    key = environment.get("LLM_DECODER_API_KEY")
    server = server_settings(settings, {"api_keys": _keys(key)} if key else {})
    given: dict[str, Any] = {"max_requests": server.max_requests}
    if environment.get("LLM_DECODER_DETERMINISTIC", "").lower() in ("1", "true", "yes"):
        given["deterministic"] = True
    if environment.get("LLM_DECODER_OFFLINE", "").lower() in ("1", "true", "yes"):
        environment["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported, which reads it once
    arguments = engine_arguments(settings, given)
    template = arguments.get("chat_template")
    if template is not None and "{" not in template:  # a template has braces; whatever has none names a file
        arguments["chat_template"] = _read_template(template)

    def open_llm() -> Any:
        from llm_decoder.llm import LLM

        return LLM(**arguments)

    return Service(open_llm, server)


def _keys(text: str) -> tuple[str, ...]:
    """A JSON list, or one key."""
    try:
        value = json.loads(text)
    except ValueError:
        return (text,)
    return tuple(str(item) for item in value) if isinstance(value, list) else (text,)


def _read_template(path: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"[chat_template] need a template, or a file with one, got {path!r:.200}: {reason}") from None
