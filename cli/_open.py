"""The one place where the command line meets the engine: flags and settings files become an open LLM."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

import typer

from llm_decoder.cli import _options
from llm_decoder.cli._options import (
    ModelOptions,
    RemoteOptions,
    SamplingDefaults,
    SamplingOptions,
    SearchOptions,
    ServerOptions,
)
from llm_decoder.cli._output import loading_bar
from llm_decoder.serving import opening

if TYPE_CHECKING:
    from llm_decoder.cli._remote import RemoteLLM
    from llm_decoder.config.schema import Settings
    from llm_decoder.llm import LLM
    from llm_decoder.sampling import SamplingParams
    from llm_decoder.search.params import SearchParams
    from llm_decoder.serving.service import Service

# Of ModelOptions, what means something to a server that runs already: its model's name, a chat's system message, and
# the settings files, which say how long answers may get.
_REMOTE_FIELDS = {"model", "system", "config"}


def open_llm(options: ModelOptions, sampling: SamplingDefaults | None = None) -> LLM:
    """The model that the flags, the environment and the settings files ask for, loaded. sampling: for what its requests
    leave open.

    Raises typer.BadParameter for a flag with a value that LLM refuses.
    """
    if options.offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported, which reads it once
    arguments = engine_arguments(options)
    if sampling is not None:
        defaults = arguments.get("sampling_defaults", {}) | sampling.sampling_defaults()
        given = {"sampling_defaults": defaults or None, "seed": sampling.seed}
        arguments |= {name: value for name, value in given.items() if value is not None}
    from llm_decoder import LLM

    with loading_bar() as progress, _usage_errors(options.engine_arguments()):
        return LLM(**arguments, progress=progress)


def open_for(options: ModelOptions, params: SamplingParams) -> LLM:
    """open_llm, with the token ids in `params` held against the model's. Raises typer.BadParameter."""
    llm = open_llm(options)
    try:
        _options.check_token_ids(params, llm.vocab_size)
    except BaseException:
        llm.close()
        raise
    return llm


def open_either(
    options: ModelOptions, params: SamplingParams, remote: RemoteOptions, context: typer.Context
) -> LLM | RemoteLLM:
    """open_for; or the server of --url, which checks for itself. Raises typer.BadParameter."""
    if remote.url is None:
        return open_for(options, params)
    return open_remote(options, remote, context)


def open_remote(options: ModelOptions, remote: RemoteOptions, context: typer.Context) -> RemoteLLM:
    """The server that --url names; --model is its name for a model. Raises typer.BadParameter."""
    from llm_decoder.cli._remote import RemoteLLM

    return RemoteLLM(remote.checked_url(), remote.key, given_model(options, context))


def given_model(options: ModelOptions, context: typer.Context) -> str | None:
    """--model of the command line, where --url is: variables and files name models of this machine.

    Raises typer.BadParameter for a flag that says how a model is loaded: the server's is already.
    """
    given = {
        field.name
        for field in dataclasses.fields(options)
        if getattr(context.get_parameter_source(field.name), "name", "") == "COMMANDLINE"
    }
    for name in sorted(given - _REMOTE_FIELDS):
        message = "this is for a model that is loaded here; with --url the server has decided it"
        raise typer.BadParameter(message, param_hint=_options.flag(name))
    return options.model if "model" in given else None


def engine_arguments(options: ModelOptions) -> dict[str, Any]:
    """Keyword arguments of `LLM`: flags over the environment over the settings files. What nobody gave is left out."""
    return opening.engine_arguments(_settings(options), options.engine_arguments())


def make_service(model: ModelOptions, server: ServerOptions, sampling: SamplingDefaults, *, port: int) -> Service:
    """The service that the flags, the environment and the settings files ask for, not started. port: the verb's own.

    Raises typer.BadParameter for a flag with a value that ServerSettings or SamplingParams refuses.
    """
    from llm_decoder.serving.memory import share_one_heap
    from llm_decoder.serving.service import Service

    share_one_heap()
    sampling.sampling_defaults()
    given = server.server_arguments()
    if model.max_requests is not None:
        given["max_requests"] = model.max_requests
    with _usage_errors([*given, "api_key"]):
        settings = opening.server_settings(_settings(model), given, port=port)
    model = dataclasses.replace(model, max_requests=settings.max_requests)
    return Service(lambda: open_llm(model, sampling), settings)


def is_embedded(options: ModelOptions) -> bool:
    """Whether the model is the one that came with the package."""
    from llm_decoder.embedded import is_embedded

    return is_embedded(engine_arguments(options).get("model"))


def sampling_params(options: SamplingOptions, model: ModelOptions, *, in_chat: bool = False) -> SamplingParams:
    """The SamplingParams of flags over settings files over the command line's own defaults.

    The settings' `stop` belongs to their chat template, so it counts in chats alone. Fields that the settings files
    give beside these are the engine's to fill in: see engine_arguments.
    """
    return _options.sampling_params(options, _request_defaults(model, in_chat=in_chat))


def search_params(
    options: SamplingOptions, search: SearchOptions, model: ModelOptions, *, in_chat: bool = False
) -> SearchParams:
    """The same for a search."""
    return _options.search_params(options, search, _request_defaults(model, in_chat=in_chat))


def _request_defaults(model: ModelOptions, *, in_chat: bool) -> dict[str, Any]:
    settings = _settings(model)
    given = {"max_tokens": settings.runtime.max_tokens, "stop": settings.chat.stop if in_chat else None}
    return {name: value for name, value in given.items() if value is not None}


def _settings(options: ModelOptions) -> Settings:
    from llm_decoder.config.files import load_settings

    _check_flags(options.engine_arguments())
    return load_settings(options.config)


def _check_flags(given: dict[str, Any]) -> None:
    """Raises typer.BadParameter for what LLM would refuse without looking at the model."""
    from llm_decoder.backends import BackendOptions, choose_device
    from llm_decoder.engine import EngineOptions
    from llm_decoder.loading import check_precision

    with _usage_errors(given):
        device = choose_device(given.get("device", "auto"))
        check_precision(device, given.get("quantization", "auto"), given.get("dtype", "auto"))
        for door in (BackendOptions, EngineOptions):
            names = {field.name for field in dataclasses.fields(door)}
            door(**{name: value for name, value in given.items() if name in names})


@contextlib.contextmanager
def _usage_errors(given: Collection[str]) -> Iterator[None]:
    """An error about an option that was given as a flag is one of usage; its place in brackets is the option's name."""
    from llm_decoder.errors import ConfigError

    try:
        yield
    except ConfigError as error:
        place = re.match(r"\[(\w+)\]", str(error))
        if place and place[1] in given:
            raise typer.BadParameter(str(error), param_hint=_options.flag(place[1])) from None
        raise
