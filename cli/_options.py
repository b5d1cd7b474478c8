"""The flags that verbs share. A field is a flag of the same name with dashes, mirrored by LLM_DECODER_<FIELD>.

`ModelOptions` are the parameters of `LLM`, `SamplingOptions` the fields of `SamplingParams`, `ServerOptions` those of
ServerSettings, `RemoteOptions` which server answers instead. None = not given: the environment has been asked already;
a settings file, the model's generation_config.json or the default decide.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from llm_decoder.cli._callable import import_callable

if TYPE_CHECKING:
    from llm_decoder.sampling import SamplingParams
    from llm_decoder.search.params import SearchParams

# Enough for a story or an answer; SamplingParams' own 16 is meant for programs.
DEFAULT_MAX_TOKENS = 512
# Parts of a server's help.
_ACCESS, _LIMITS, _LOG = "Who may call", "Limits and times", "Log"

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
QuietFlag = Annotated[bool, typer.Option("--quiet", "-q", help="No speed report on standard error.")]

PlotFlag = Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it as a picture, such as bench.png.")]
ReportFlag = Annotated[
    Path | None, typer.Option("--output", "-o", metavar="FILE", help="Also write the JSON report to this file.")
]

ConfigFlag = Annotated[
    Path | None,
    typer.Option(metavar="DIR", envvar="LLM_DECODER_CONFIG", show_envvar=False, help="Settings files, as elsewhere."),
]


def _flag(metavar: str | None, help: str, *names: str, part: str | None = None) -> Any:
    """part: of the help, where it is another than the group's title."""
    return typer.Option(*names, help=help, metavar=metavar, show_default=False, show_envvar=False, rich_help_panel=part)


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, where it runs, and how much memory it may take."""

    title: ClassVar[str] = "Model"

    model: Annotated[str | None, _flag("MODEL", "Folder or hub id [the story model].", "--model", "-m")] = None
    tokenizer: Annotated[str | None, _flag("DIR", "A folder to take the tokenizer from [the model's].")] = None
    reranker: Annotated[str | None, _flag("DIR", "Cross-encoder that scores answers [the embedded one].")] = None
    embedder: Annotated[
        str | None, _flag("DIR", "Sentence encoder that makes vectors of texts [the model's hidden states].")
    ] = None
    chat_template: Annotated[
        str | None, _flag("FILE", "Jinja chat template: a file, or a text with a { [the model's].")
    ] = None
    system: Annotated[str | None, _flag("TEXT", "What the model is told at the beginning of a chat.")] = None
    cache_dir: Annotated[str | None, _flag("DIR", "Where packed weights are kept [~/.cache/llm_decoder].")] = None
    device: Annotated[
        str | None, _flag("NAME", "auto, cpu, cuda, cuda:1 ... [auto: a GPU that the model fits, else the CPU].")
    ] = None
    quantization: Annotated[
        str | None, _flag("NAME", "auto, none, int8, int4, on a GPU fp8 [auto: int8, on a GPU none].")
    ] = None
    dtype: Annotated[
        str | None,
        _flag("NAME", "Of weights not quantised: auto (as stored), bfloat16, float32, on a GPU float16 [auto]."),
    ] = None
    kv_cache_dtype: Annotated[
        str | None, _flag("NAME", "auto (as the weights), float32, bfloat16, int8; on a GPU fp8 [auto].")
    ] = None
    kv_cache_bytes: Annotated[
        str | None,
        _flag(
            "SIZE",
            "Of the KV cache, as 512MiB or 2G [four contexts, 1/4 of free memory at most; a GPU's rest].",
        ),
    ] = None
    kv_tier_bytes: Annotated[
        str | None,
        _flag("SIZE", "Host memory for pages that give way on a GPU; 0 = none [two pools, 1/4 of free at most]."),
    ] = None
    max_model_len: Annotated[int | None, _flag("N", "Context length in tokens, at most the model's [the model's].")] = (
        None
    )
    page_size: Annotated[int | None, _flag("N", "Tokens a page of the KV cache; a multiple of 16 [32].")] = None
    threads: Annotated[int | None, _flag("N", "Threads that compute [one a physical core].")] = None
    isa: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Kernels, a name that `llm-decoder devices` shows [the best].",
            envvar="LLM_DECODER_CPU_ISA",  # the name the core itself knows
            show_default=False,
            show_envvar=False,
        ),
    ] = None
    max_num_seqs: Annotated[int | None, _flag("N", "Sequences computed together [64].")] = None
    speculation: Annotated[
        str | None, _flag("NAME", "Tokens guessed ahead: prompt-lookup, or none [prompt-lookup].")
    ] = None
    speculative_tokens: Annotated[int | None, _flag("N", "Tokens guessed ahead at most [15].")] = None
    max_tokens_per_step: Annotated[
        int | None, _flag("N", "Tokens a step computes; prompts are cut to it [512, on a GPU 4096].")
    ] = None
    max_requests: Annotated[
        int | None, _flag("N", "Open requests before one is refused. Servers: 256; else no limit.")
    ] = None
    deterministic: Annotated[
        bool | None,
        _flag(None, "Answers never depend on what else runs; on the CPU they never do, a GPU is slower then."),
    ] = None
    config: Annotated[Path | None, _flag("DIR", "Settings files [./config, else the packaged ones].")] = None
    generation_config: Annotated[
        str | None, _flag("NAME", "The model's own advice on sampling: auto (followed) or none [auto].")
    ] = None
    offline: Annotated[bool, _flag(None, "Never use the network.", "--offline")] = False

    def engine_arguments(self) -> dict[str, Any]:
        """What was given, as keyword arguments of `LLM`. Raises typer.BadParameter for what is no size or file."""
        names = [field.name for field in fields(self) if field.name not in ("config", "offline")]
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if "kv_cache_bytes" in given:
            given["kv_cache_bytes"] = parse_size(given["kv_cache_bytes"])
        if "kv_tier_bytes" in given:
            given["kv_tier_bytes"] = parse_size(given["kv_tier_bytes"], "--kv-tier-bytes", least=0)
        if "chat_template" in given:
            given["chat_template"] = _template(given["chat_template"])
        return given


@dataclass(frozen=True, kw_only=True)
class SamplingDefaults:
    """How answers are sampled where a request leaves it open."""

    title: ClassVar[str] = "Sampling, where a request leaves it open"

    temperature: Annotated[float | None, _flag("X", "0 = greedy [the model's, else 1].", "--temperature", "-t")] = None
    top_k: Annotated[int | None, _flag("K", "Sample among the k likeliest tokens. 0 = off.")] = None
    top_p: Annotated[float | None, _flag("P", "Sample among the likeliest that reach p. 1 = off.")] = None
    min_p: Annotated[float | None, _flag("P", "Sample among those p times as likely as the best.")] = None
    repetition_penalty: Annotated[float | None, _flag("X", "For tokens in prompt and answer. 1 = off.")] = None
    presence_penalty: Annotated[float | None, _flag("X", "For tokens in the answer. 0 = off.")] = None
    frequency_penalty: Annotated[float | None, _flag("X", "The same for each use. 0 = off.")] = None
    seed: Annotated[int | None, _flag("N", "Same seed, same answer.")] = None

    def sampling_defaults(self) -> dict[str, Any]:
        """What was given, but the seed, with which the engine draws seeds. Raises typer.BadParameter."""
        names = [field.name for field in fields(SamplingDefaults) if field.name != "seed"]
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        _checked_params(given)
        return given


@dataclass(frozen=True, kw_only=True)
class SamplingOptions(SamplingDefaults):
    """How an answer is sampled and when it stops."""

    title: ClassVar[str] = "Sampling"

    max_tokens: Annotated[int | None, _flag("N", f"Tokens to generate [{DEFAULT_MAX_TOKENS}].")] = None
    min_tokens: Annotated[int | None, _flag("N", "No end before so many tokens.")] = None
    logit_bias: Annotated[list[str] | None, _flag("ID=BIAS", "Added to a token's logit. Repeatable.")] = None
    allowed_token_ids: Annotated[str | None, _flag("ID,ID,...", "Generate only these.")] = None
    bad_token_ids: Annotated[str | None, _flag("ID,ID,...", "Never generate these.")] = None
    bad_words: Annotated[list[str] | None, _flag("TEXT", "Never generate this. Repeatable.")] = None
    stop: Annotated[list[str] | None, _flag("TEXT", "End the answer at this text. Repeatable.")] = None
    stop_token_ids: Annotated[str | None, _flag("ID,ID,...", "End the answer at these.")] = None
    include_stop_str_in_output: Annotated[bool | None, _flag(None, "Keep the text that stopped the answer.")] = None
    ignore_eos: Annotated[bool | None, _flag(None, "Go on after the model's end token.")] = None
    n: Annotated[int | None, _flag("N", "Answers a prompt.", "--n")] = None
    logprobs: Annotated[int | None, _flag("N", "Log probabilities, N alternatives a token (--json).")] = None
    prompt_logprobs: Annotated[int | None, _flag("N", "The same for the prompt (--json).")] = None
    skip_special_tokens: Annotated[bool | None, _flag(None, "Special tokens give no text [yes].")] = None
    structured_outputs: Annotated[
        str | None, _flag("JSON|@FILE", 'The form of the answer: {"json": SCHEMA}, {"regex": "..."}, ...')
    ] = None
    cache_salt: Annotated[str | None, _flag("TEXT", "Share cached prefixes only under this salt.")] = None

    def given(self) -> dict[str, Any]:
        """The fields that were given, with the values that SamplingParams takes. Raises typer.BadParameter."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        values |= {name: values[name] or _environment_list(name) for name in ("logit_bias", "bad_words", "stop")}
        found = {name: value for name, value in values.items() if value is not None}
        for name in ("allowed_token_ids", "bad_token_ids", "stop_token_ids"):
            if name in found:
                found[name] = _token_ids(name, found[name])
        if "structured_outputs" in found:
            found["structured_outputs"] = _structured(found["structured_outputs"])
        if "logit_bias" in found:
            found["logit_bias"] = dict(_bias(entry) for entry in found["logit_bias"])
        return found


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """How many answers are followed, kept and ranked: the fields that SearchParams has beside those of sampling."""

    title: ClassVar[str] = "Search"

    width: Annotated[int | None, _flag("N", "Answers that are followed at once [4].", "--width", "-w")] = None
    method: Annotated[
        str | None, _flag("NAME", "beam, sample (best of N) or steps (best of N at each step) [beam].")
    ] = None
    length_penalty: Annotated[float | None, _flag("X", "An answer scores its sum / length ** X [1].")] = None
    early_stopping: Annotated[
        str | None, _flag("WHEN", "true: with N answers; false: when none can win; never: nor at its longest [false].")
    ] = None
    groups: Annotated[int | None, _flag("N", "Beams in groups that take turns [1].")] = None
    diversity_penalty: Annotated[float | None, _flag("X", "For what earlier groups have chosen [0].")] = None
    scorer: Annotated[
        str | None, _flag("NAME", "logprob, reranker, likelihood, or module:function of your own [logprob].")
    ] = None
    alpha: Annotated[float | None, _flag("A", "The scorer's weight, 0 to 1 [0.5].")] = None
    normalise: Annotated[str | None, _flag("NAME", "Of its scores: none, sigmoid or zscore [none].")] = None
    query: Annotated[str | None, _flag("TEXT", "What the scorer reads as the prompt [the prompt].")] = None
    separator: Annotated[
        str | None, _flag("TEXT", "What ends a step of --method steps; \\n is a line's end [\\n].")
    ] = None
    step_tokens: Annotated[int | None, _flag("N", "Most tokens of a step [64].")] = None
    branches: Annotated[int | None, _flag("N", "Continuations of each answer a step [2].")] = None

    def given(self) -> dict[str, Any]:
        """What was given, with the values that SearchParams takes. Raises typer.BadParameter."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        found = {name: value for name, value in found.items() if value is not None}
        if "early_stopping" in found:
            found["early_stopping"] = _early_stopping(found["early_stopping"])
        if ":" in found.get("scorer", ""):
            found["scorer"] = import_callable(found["scorer"], "--scorer")
        if "separator" in found:
            found["separator"] = found["separator"].replace("\\n", "\n")
        return found


@dataclass(frozen=True, kw_only=True)
class RemoteOptions:
    """A server that answers in place of a model that is loaded here."""

    title: ClassVar[str] = "Server that answers"

    url: Annotated[str | None, _flag("URL", "Ask the server there, such as http://127.0.0.1:8000.")] = None
    api_key: Annotated[str | None, _flag("KEY", "The server's API key.")] = None

    @property
    def key(self) -> str | None:
        """LLM_DECODER_API_KEY may be the list of a server's keys: any of them opens it."""
        keys = _as_list(self.api_key)
        return keys[0] if keys else None

    def checked_url(self) -> str:
        """Raises typer.BadParameter."""
        from llm_decoder.cli._remote import checked_url

        assert self.url is not None
        try:
            return checked_url(self.url)
        except ValueError as error:
            raise typer.BadParameter(str(error), param_hint="--url") from None


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Where a server listens, who may call it, and what a request may weigh."""

    title: ClassVar[str] = "Address"

    host: Annotated[str | None, _flag("NAME", "Address to listen on [127.0.0.1: this machine alone].")] = None
    port: Annotated[int | None, _flag("N", "Port to listen on; 0 = any that is free [serve: 8000, web: 5000].")] = None
    api_key: Annotated[
        list[str] | None,
        _flag("KEY", "A key that opens the routes [they are open]. Repeatable.", "--api-key", part=_ACCESS),
    ] = None
    api_key_file: Annotated[str | None, _flag("FILE", "A file with a key a line.", part=_ACCESS)] = None
    served_model_name: Annotated[str | None, _flag("NAME", "What clients call the model [its own name].")] = None
    cors_origins: Annotated[
        list[str] | None,
        _flag("ORIGIN", "Pages of other sites that may call; * = any [none]. Repeatable.", part=_ACCESS),
    ] = None
    allowed_hosts: Annotated[
        list[str] | None, _flag("NAME", "Names of this server; * = any [its own]. Repeatable.", part=_ACCESS)
    ] = None
    max_prompts: Annotated[int | None, _flag("N", "Prompts a request [256].", part=_LIMITS)] = None
    max_inputs: Annotated[int | None, _flag("N", "Texts a request for vectors or scores [2048].", part=_LIMITS)] = None
    max_n: Annotated[int | None, _flag("N", "Answers a prompt [128].", part=_LIMITS)] = None
    max_beam_width: Annotated[int | None, _flag("N", "Beams of a search [64].", part=_LIMITS)] = None
    max_answer_tokens: Annotated[int | None, _flag("N", "Tokens a request may ask for [1048576].", part=_LIMITS)] = None
    max_body_bytes: Annotated[str | None, _flag("SIZE", "Of a request [8MiB].", part=_LIMITS)] = None
    max_header_bytes: Annotated[str | None, _flag("SIZE", "Of a request [64KiB].", part=_LIMITS)] = None
    read_timeout_s: Annotated[
        float | None, _flag("S", "From a request's first byte to its last [30].", part=_LIMITS)
    ] = None
    ping_s: Annotated[float | None, _flag("S", "Silence in a stream before a comment [15].", part=_LIMITS)] = None
    drain_s: Annotated[float | None, _flag("S", "How long answers go on when the server ends [30].", part=_LIMITS)] = (
        None
    )
    resume_s: Annotated[
        float | None, _flag("S", "How long a page's answer waits for its reader [15].", part=_LIMITS)
    ] = None
    log_format: Annotated[str | None, _flag("NAME", "text or json [text].", part=_LOG)] = None
    salt_by_key: Annotated[bool | None, _flag(None, "Each API key has its own cached prefixes [no].", part=_ACCESS)] = (
        None
    )
    log_prompts: Annotated[bool | None, _flag(None, "Bodies of requests may stand in the log [no].", part=_LOG)] = None
    debug_kv: Annotated[bool | None, _flag(None, "GET /debug/kv tells of each page [no].", part=_LOG)] = None

    def server_arguments(self) -> dict[str, Any]:
        """What was given, as fields of ServerSettings. Raises typer.BadParameter, and ConfigError for a bad file of
        keys."""
        from llm_decoder.serving.opening import read_keys

        names = [field.name for field in fields(self) if not field.name.startswith("api_key")]
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        for name in ("max_body_bytes", "max_header_bytes"):
            if name in given:
                given[name] = parse_size(given[name], flag(name))
        for name in ("cors_origins", "allowed_hosts"):
            if name in given:
                given[name] = tuple(part.strip() for text in given[name] for part in text.split(",") if part.strip())
        keys = tuple(self.api_key or _environment_list("api_key") or ())
        if self.api_key_file is not None:
            keys += read_keys(self.api_key_file)
        return given | ({"api_keys": keys} if keys else {})


def sampling_params(options: SamplingOptions, defaults: dict[str, Any] | None = None) -> SamplingParams:
    """The SamplingParams of the flags over `defaults` (the settings files') over DEFAULT_MAX_TOKENS.

    Raises typer.BadParameter, which names the flag, when a value is out of its limits.
    """
    given = options.given()
    fallback = max(DEFAULT_MAX_TOKENS, given.get("min_tokens", 0))
    return _checked_params({"max_tokens": fallback, **(defaults or {}), **given})


def _checked_params(values: dict[str, Any]) -> SamplingParams:
    from llm_decoder.errors import InvalidRequestError
    from llm_decoder.sampling import SamplingParams

    try:
        return SamplingParams.from_dict(values)
    except InvalidRequestError as error:
        raise typer.BadParameter(str(error), param_hint=flag(error.param)) from None


def search_params(options: SamplingOptions, search: SearchOptions, defaults: dict[str, Any]) -> SearchParams:
    """The same for SearchParams."""
    from llm_decoder.errors import InvalidRequestError
    from llm_decoder.search.params import SearchParams

    given = options.given() | search.given()
    fallback = max(DEFAULT_MAX_TOKENS, given.get("min_tokens", 0))
    try:
        return SearchParams(**{"max_tokens": fallback, **defaults, **given})
    except InvalidRequestError as error:
        raise typer.BadParameter(str(error), param_hint=flag(error.param)) from None


def check_token_ids(params: SamplingParams, vocab_size: int) -> None:
    """Raises typer.BadParameter, which names the flag, for a token id that the model does not have."""
    for name in ("stop_token_ids", "allowed_token_ids", "bad_token_ids", "logit_bias"):
        unknown = [token for token in getattr(params, name) or () if token >= vocab_size]
        if unknown:
            message = f"token ids must be from 0 to {vocab_size - 1}, got {unknown[0]}"
            raise typer.BadParameter(message, param_hint=flag(name))


def flag(name: str | None) -> str | None:
    """max_tokens -> --max-tokens"""
    return f"--{name.replace('_', '-')}" if name else None


def parse_size(text: str, hint: str | None = "--kv-cache-bytes", *, least: int = 1) -> int:
    """ "512MiB", "2G", "1_000_000" -> bytes; K, M, G, T are powers of 1024. Raises typer.BadParameter."""
    number = text.strip().upper().removesuffix("B").removesuffix("I")
    power = "KMGT".find(number[-1:]) + 1 if number[-1:] else 0
    try:
        n_bytes = float(number[:-1] if power else number) * 1024**power
    except ValueError:
        n_bytes = -1.0
    if not least <= n_bytes < 2**63:
        raise typer.BadParameter(f"need a size such as 512MiB, 2G or 1000000, got {text!r}", param_hint=hint)
    return int(n_bytes)


def _early_stopping(text: str) -> bool | str:
    if text not in ("true", "false", "never"):
        raise typer.BadParameter(f"need true, false or never, got {text!r:.50}", param_hint="--early-stopping")
    return text if text == "never" else text == "true"


def _template(text: str) -> str:
    """A template has braces; whatever has none names a file."""
    if "{" in text:
        return text
    return _file_text(text, "need a file of UTF-8 text, or a template", "--chat-template")


def _structured(text: str) -> dict[str, Any]:
    """An object such as {"regex": "[0-9]+"}, or @ and a file that holds one."""
    hint = "--structured-outputs"
    need = 'need an object such as {"json": {"type": "object"}} or @FILE'
    text = _file_text(text[1:], need, hint) if text.startswith("@") else text
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise typer.BadParameter(f"{need}, got {text!r:.200}: {error}", param_hint=hint) from None
    if not isinstance(value, dict):
        raise typer.BadParameter(f"{need}, got {text!r:.200}", param_hint=hint)
    return value


def _file_text(name: str, need: str, hint: str) -> str:
    try:
        return Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise typer.BadParameter(f"{need}, got {name!r:.200}: {reason}", param_hint=hint) from None


def _environment_list(name: str) -> list[str] | None:
    """LLM_DECODER_<NAME> of a flag that can be repeated: a JSON list, or one text."""
    return _as_list(os.environ.get(f"LLM_DECODER_{name.upper()}"))


def _as_list(text: str | None) -> list[str] | None:
    if not text:
        return None
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    return [str(item) for item in value] if isinstance(value, list) else [text]


def _token_ids(name: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"need token ids such as 3,17,204, got {text!r}", param_hint=flag(name)) from None


def _bias(entry: str) -> tuple[int, float]:
    token, _, bias = entry.partition("=")
    try:
        return int(token), float(bias)
    except ValueError:
        raise typer.BadParameter(f"need ID=BIAS such as 42=-5, got {entry!r}", param_hint="--logit-bias") from None
