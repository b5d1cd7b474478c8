"""A hub id -> a folder on this machine, through huggingface_hub: its cache, its tokens, HF_ENDPOINT and HF_HUB_OFFLINE.

Small files come first, so that a model this build cannot run is refused before gigabytes are fetched; of the weights
only the safetensors files that the checkpoint names. Nothing else of a repository is fetched, code least of all.
"""

from __future__ import annotations

import io
import os
import re
from pathlib import Path
from typing import Any

from llm_decoder.errors import ModelLoadError, ModelNotFoundError
from llm_decoder.json_file import read_json_object
from llm_decoder.models import parse_config
from llm_decoder.no_tokenizer import TOKENIZER_FILES
from llm_decoder.quantize import Progress
from llm_decoder.safetensors_checkpoint import INDEX_NAME, MAX_INDEX_BYTES, SINGLE_NAME

__all__ = ["is_hub_id", "is_offline", "snapshot"]

SMALL_FILES = [
    *("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "merges.txt"),
    *("chat_template.jinja", "chat_template.json", *TOKENIZER_FILES, INDEX_NAME),
]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_TRUE = ("1", "true", "yes", "on")


def is_hub_id(model: str) -> bool:
    """Whether a text could be "owner/name" (or a bare "name") on a hub."""
    return _HUB_ID.fullmatch(model) is not None and ".." not in model and "--" not in model


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) asks for no network at all."""
    return any(os.environ.get(name, "").lower() in _TRUE for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))


def snapshot(model: str, *, revision: str | None = None, progress: Progress | None = None) -> Path:
    """The folder of a hub model's files, fetched where they are not in huggingface_hub's cache yet.

    Raises ModelNotFoundError when the hub or, offline, the cache does not have it, ModelLoadError when the hub cannot
    be reached or asks for a token, UnsupportedModelError when this build cannot run it.
    """
    fetch = _Fetcher(model, revision, progress)
    folder = fetch(SMALL_FILES)
    config_path = folder / "config.json"
    if not config_path.exists():
        raise ModelNotFoundError(
            f"[{model}] need config.json, got none on the hub; is it a model of transformers' form?"
        )
    parse_config(read_json_object(config_path), f"{model}: config.json")
    index = folder / INDEX_NAME
    wanted = [SINGLE_NAME]
    if index.exists():
        weight_map = read_json_object(index, MAX_INDEX_BYTES).get("weight_map")
        names = set(weight_map.values()) if isinstance(weight_map, dict) else set()
        wanted = sorted(name for name in names if isinstance(name, str) and name.endswith(".safetensors"))
    folder = fetch(wanted)
    missing = [name for name in wanted if not (folder / name).exists()]
    if missing:
        raise ModelNotFoundError(
            f"[{model}] need {missing[0]}, got none {'in the local cache' if is_offline() else 'on the hub'}; "
            "only safetensors checkpoints are read"
        )
    return folder


class _Fetcher:
    def __init__(self, model: str, revision: str | None, progress: Progress | None) -> None:
        self._model, self._revision, self._progress = model, revision, progress

    def __call__(self, names: list[str]) -> Path:
        from huggingface_hub import errors, snapshot_download

        try:
            folder = snapshot_download(
                self._model,
                revision=self._revision,
                allow_patterns=names,
                endpoint=os.environ.get("HF_ENDPOINT") or None,
                local_files_only=is_offline(),
                tqdm_class=_bar_class(self._progress, self._model),
            )
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.HFValidationError) as error:
            raise self._not_found(error) from error
        except (
            errors.LocalEntryNotFoundError,
            errors.CachedRepoTreeNotFoundError,
            errors.IncompleteSnapshotError,
        ) as e:
            raise self._unreachable(e) from e
        except (errors.HfHubHTTPError, OSError) as error:
            raise self._unreachable(error) from error
        except Exception as error:  # the transport library's own errors, whichever it is in this version
            if type(error).__module__.partition(".")[0] not in ("httpx", "httpx2", "httpcore", "httpcore2", "requests"):
                raise
            raise self._unreachable(error) from error
        return Path(str(folder))

    def _not_found(self, error: Exception) -> ModelLoadError:
        from huggingface_hub import errors

        if isinstance(error, errors.GatedRepoError):
            return ModelLoadError(f"[{self._model}] its owner asks for consent: accept it on the hub and set HF_TOKEN")
        return ModelNotFoundError(
            f"[{self._model}] need a folder on this machine or a model on the hub, got neither; check the name, "
            "or set HF_TOKEN if it is private"
        )

    def _unreachable(self, error: Exception) -> ModelLoadError:
        if is_offline():
            return ModelNotFoundError(
                f"[{self._model}] need it in the local cache, as HF_HUB_OFFLINE or --offline forbids the network, got "
                "none; leave them out to download"
            )
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        return ModelLoadError(f"[{self._model}] the hub cannot be reached: {reason}; check the network or HF_ENDPOINT")


def _bar_class(progress: Progress | None, model: str) -> Any:
    """A tqdm class that draws nothing and hands byte counts on."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):  # type: ignore[misc, unused-ignore]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self._counts_bytes = kwargs.get("unit") == "B"
            self._n_bytes = int(kwargs.get("initial") or 0)
            super().__init__(*args, **{**kwargs, "file": io.StringIO()})

        def update(self, n: float | None = 1) -> bool | None:
            self._n_bytes += int(n or 0)
            n_total = int(getattr(self, "total", None) or 0)
            if progress is not None and self._counts_bytes and n_total:
                progress(min(self._n_bytes, n_total), n_total, f"downloading {model}")
            return bool(super().update(n))

    return Bar
