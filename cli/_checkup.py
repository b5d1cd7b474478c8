"""What doctor looks at, one function a question. A check returns what it found and raises what it cannot cope with."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import socket
import stat
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from llm_decoder.cli._output import size
from llm_decoder.cli._verb import words
from llm_decoder.cli._what_fits import where_it_fits
from llm_decoder.cli.devices import describe_cublaslt, describe_driver, describe_fits

if TYPE_CHECKING:
    from llm_decoder.backends import DeviceInfo

__all__ = ["Finding", "examine"]

State: TypeAlias = Literal["ok", "warn", "fail"]

_NEEDED = (
    *("numpy", "tokenizers", "jinja2", "safetensors", "huggingface-hub", "pyyaml", "llguidance", "typer", "rich"),
    *("prompt-toolkit", "httpx", "pydantic", "fastapi", "uvicorn", "flask", "waitress", "prometheus-client"),
    *("markdown-it-py", "pygments", "nh3", "math-core"),
)
_OLDEST_PYTHON = (3, 11)
# Below this not even a small model has room beside its KV cache.
_LITTLE_MEMORY_BYTES = 1 << 30


@dataclass(frozen=True)
class Finding:
    """state: fail = a model will not run, or not right; warn = something will not be as one would think."""

    name: str
    state: State
    text: str


@dataclass(frozen=True)
class Asked:
    """What should run, None = only the embedded model, on which device and how."""

    model: str | None = None
    device: str = "auto"
    quantization: str = "auto"


def examine(
    config: Path | None, cache_dir: Path | None, port: int | None, asked: Asked, *, is_quick: bool
) -> Iterator[Finding]:
    """What each check found, as it is found."""
    checks: list[tuple[str, Callable[[], tuple[State, str]]]] = [
        ("python", _python),
        ("packages", _packages),
        ("core", _core),
        ("settings", lambda: _settings(config)),
        ("cpu", _cpu),
        ("memory", _memory),
        ("gpu", lambda: _gpu(asked.device)),
        *([("fit", lambda: _fit(asked.model or "", asked, config))] if asked.model else []),
        ("cache", lambda: _cache(config, cache_dir)),
        ("weights", lambda: _weights(config, cache_dir, is_quick=is_quick)),
        ("port", lambda: _port(config, port)),
        ("model", lambda: _model(is_quick=is_quick)),
    ]
    for name, check in checks:
        state: State
        try:
            state, text = check()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what was looked for
            state, text = "fail", words(error)
        yield Finding(name, state, _without_names(text))


def _without_names(text: str) -> str:
    """Paths in the user's home begin with ~, and line breaks are spaces."""
    text = " ".join(text.split())
    try:
        home = str(Path.home())
    except RuntimeError:  # a user without a home
        return text
    return text if home == "/" else re.sub(re.escape(home) + r"(?=$|[^\w.-])", "~", text)


def _python() -> tuple[State, str]:
    found = f"{platform.python_implementation()} {platform.python_version()} on {platform.platform()}"
    if sys.version_info < _OLDEST_PYTHON:
        return "fail", f"{found}; need 3.11 or later"
    return "ok", found


def _packages() -> tuple[State, str]:
    versions: dict[str, str] = {}
    missing = []
    for name in _NEEDED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    if missing:
        return "fail", f"{', '.join(missing)} missing; pip install -r requirements.txt, or reinstall llm_decoder"
    return "ok", ", ".join(f"{name} {version}" for name, version in versions.items())


def _core() -> tuple[State, str]:
    try:
        from llm_decoder.backends import isas
    except ImportError as error:
        return "fail", f"the compiled core does not load: {error}; build it again (README.md), or reinstall llm_decoder"
    return "ok", f"loaded, kernels for {', '.join(isas())}"


def _settings(config: Path | None) -> tuple[State, str]:
    from llm_decoder.config.files import find_config_dir, load_settings

    load_settings(config)
    given = sorted(name for name in os.environ if name.startswith("LLM_DECODER_"))
    from_environment = f"; set in the environment: {', '.join(given)}" if given else ""
    return "ok", f"read from {find_config_dir(config)}{from_environment}"


def _cpu() -> tuple[State, str]:
    from llm_decoder.backends import choose_isa, devices

    cpu = devices()[0]
    isa = choose_isa()
    found = f"{cpu.description}, kernels {isa}, {cpu.threads} threads on {cpu.cores} physical cores"
    if isa == "generic":
        return "warn", f"{found}: these kernels run anywhere and are slow; AVX2 or later is wanted"
    if isa != cpu.isas[0]:
        return "warn", f"{found}: LLM_DECODER_CPU_ISA forces these, {cpu.isas[0]} would be faster"
    if cpu.threads > cpu.cores:
        return "warn", f"{found}: more threads than cores make every step slower"
    return "ok", found


def _memory() -> tuple[State, str]:
    from llm_decoder.fit import available_memory_bytes

    free = available_memory_bytes()
    if free < _LITTLE_MEMORY_BYTES:
        return "warn", f"{size(free)} free: small models only"
    return "ok", f"{size(free)} free"


def _gpu(wanted: str) -> tuple[State, str]:
    """That there is none to use is a failure where one is wanted by name."""
    from llm_decoder.backends import choose_device, devices, usable_gpu

    if choose_device(wanted) not in ("auto", "cpu"):
        usable_gpu(choose_device(wanted))
    found = devices()[1:]
    told = [_told(gpu) if gpu.is_usable else f"{gpu.description}, not used: {gpu.reason}" for gpu in found]
    wants_library = os.environ.get("LLM_DECODER_GEMM") != "ours"
    is_slow = wants_library and any(gpu.is_usable and not gpu.cublaslt for gpu in found)
    return "warn" if is_slow else "ok", "; ".join(told)


def _told(gpu: DeviceInfo) -> str:
    memory = f"{size(gpu.memory_bytes)} free of {size(gpu.total_bytes)}"
    library = f"cuBLASLt {describe_cublaslt(gpu)}"
    return f"{gpu.description}, {memory}, driver {describe_driver(gpu)}, {library}; fits {describe_fits(gpu)}"


def _fit(model: str, asked: Asked, config: Path | None) -> tuple[State, str]:
    """By the files' headers: no weight is read, nothing fetched."""
    from llm_decoder.cli.models_list import find_locally
    from llm_decoder.config.files import describing_folder, load_settings

    path = find_locally(model)
    folder = describing_folder(load_settings(config), path)
    is_there, told = where_it_fits(model, path, folder, asked.device, asked.quantization)
    return "ok" if is_there else "fail", told


def _cache_folder(config: Path | None, cache_dir: Path | None) -> Path:
    from llm_decoder.config.files import load_settings
    from llm_decoder.weight_cache import cache_folder

    return cache_folder(cache_dir or load_settings(config).paths.cache)


def _cache(config: Path | None, cache_dir: Path | None) -> tuple[State, str]:
    """Nothing is made or changed: that is for who loads a model."""
    folder = _cache_folder(config, cache_dir)
    if not folder.exists():
        above = next(path for path in folder.absolute().parents if path.exists())
        if not os.access(above, os.W_OK | os.X_OK):
            return "fail", f"{folder} is not there and cannot be made in {above}; set LLM_DECODER_CACHE_DIR"
        return "ok", f"{folder} is not there yet and can be made"
    status = folder.stat()
    if not stat.S_ISDIR(status.st_mode):
        return "fail", f"{folder} is no folder; set LLM_DECODER_CACHE_DIR"
    if status.st_uid != os.getuid():
        return "fail", f"{folder} belongs to another user; set LLM_DECODER_CACHE_DIR to a folder of your own"
    if not os.access(folder, os.W_OK | os.X_OK):
        return "fail", f"{folder} cannot be written, mode {status.st_mode & 0o777:o}; set LLM_DECODER_CACHE_DIR"
    free = size(shutil.disk_usage(folder).free)
    if status.st_mode & 0o077:
        return "warn", f"{folder} is open to others, mode {status.st_mode & 0o777:o}; chmod 700 it. {free} free"
    return "ok", f"{folder}, private, {free} free"


def _weights(config: Path | None, cache_dir: Path | None, *, is_quick: bool) -> tuple[State, str]:
    """Packed weights against the hash that was stored with them."""
    from llm_decoder.weight_cache import list_entries, max_cache_bytes, verify

    entries = list_entries(_cache_folder(config, cache_dir))
    leftovers = [entry for entry in entries if entry.is_leftover]
    kept = [entry for entry in entries if not entry.is_leftover]
    total = size(sum(entry.n_bytes for entry in kept))
    found = f"{len(kept)} models packed, {total} of at most {size(max_cache_bytes())}"
    if not is_quick:
        broken = [entry.path.name for entry in kept if not verify(entry.path)]
        if broken:
            return "fail", f"damaged: {', '.join(broken)}; delete them (llm-decoder cache clear)"
        found += ", every hash is right" * bool(kept)
    if leftovers:
        return "warn", f"{found}; {len(leftovers)} left by writers that were killed go when a model is next packed"
    return "ok", found


def _port(config: Path | None, port: int | None) -> tuple[State, str]:
    from llm_decoder.cli.serve import PORT
    from llm_decoder.config.files import load_settings

    settings = load_settings(config).runtime
    host = settings.host or "127.0.0.1"
    number = port or settings.port or PORT
    family, kind, protocol, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
        except OSError as error:
            return "warn", f"{number} cannot be listened on: {error.strerror}; serve --port 0 takes one that is free"
    return "ok", f"{number} is free"


def _model(*, is_quick: bool) -> tuple[State, str]:
    """The embedded model must tell what it told when it was made. Packed anew, into a folder of its own."""
    from llm_decoder.embedded import EMBEDDED_NAME, embedded_model

    folder = embedded_model()
    golden = _golden(folder)
    if is_quick:
        return "ok", f"{EMBEDDED_NAME} is there, nothing was computed"
    from llm_decoder import LLM, SamplingParams

    params = SamplingParams(max_tokens=golden["max_tokens"], temperature=0.0)
    with (
        warnings.catch_warnings(),
        tempfile.TemporaryDirectory(prefix="llm_decoder-doctor-") as cache,
        LLM(str(folder), device="cpu", cache_dir=cache, kv_cache_bytes=16 << 20) as llm,
    ):
        warnings.simplefilter("ignore")
        (output,) = llm.generate(golden["prompt"], params)
        backend = llm.stats()["backend"]
    told = output.outputs[0].text
    if told != golden["text"]:
        return "fail", (
            f"{EMBEDDED_NAME} told {told[:80]!r}, need {golden['text'][:80]!r}: the kernels of this machine compute "
            "something else; please report it, and try LLM_DECODER_CPU_ISA=generic"
        )
    rate = f"{output.metrics.tokens_per_s:.0f} tokens per second"
    return "ok", f"{EMBEDDED_NAME} tells word for word what it should ({backend['layout']}, {backend['isa']}, {rate})"


def _golden(embedded: Path) -> Any:
    """What HF transformers has the embedded model tell: {"prompt", "max_tokens", "text"}. In int8 it tells the same."""
    return json.loads((embedded.parent / "samples" / "golden.json").read_text(encoding="utf-8"))
