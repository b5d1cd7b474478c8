"""The command line at a server of its own: the same answers as from a model that is loaded here, and figures of its
speed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from llm_decoder.cli._options import ModelOptions
from llm_decoder.cli._own_server import OwnServer, own_server
from llm_decoder.cli.main import main
from llm_decoder.errors import ServerError


@pytest.fixture(scope="module")
def server() -> Iterator[OwnServer]:
    with own_server(ModelOptions()) as running:
        yield running


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main(list(arguments)) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    "flags",
    [(), ("--n", "2", "--temperature", "0.8"), ("--logprobs", "2", "--stop", "dog"), ("--prompt-logprobs", "1")],
)
def test_a_server_answers_as_the_model_here_does(
    capsys: pytest.CaptureFixture[str], server: OwnServer, flags: tuple[str, ...]
) -> None:
    asked = ("generate", "Once upon a time", "--json", "--max-tokens", "20", "--seed", "5", *flags)
    here, there = run(capsys, *asked), run(capsys, *asked, "--url", server.url)
    for name in ("prompt", "prompt_token_ids"):
        assert there[name] == here[name]
    for name in ("n_prompt_tokens", "n_generated_tokens"):
        assert there["metrics"][name] == here["metrics"][name]
    for one, other in zip(there["outputs"], here["outputs"], strict=True):
        for name in ("index", "text", "token_ids", "finish_reason", "stop_reason"):
            assert one.get(name) == other.get(name)
        for a, b in zip(one.get("logprobs", ()), other.get("logprobs", ()), strict=True):
            assert (a["token_id"], a["top"]) == (b["token_id"], b["top"])
            assert a["logprob"] == b["logprob"]
            assert a["rank"] == b["rank"] or (a["rank"] == 0 and b["rank"] > 2)
    assert there.get("prompt_logprobs") == here.get("prompt_logprobs")


def test_a_wrong_value_is_wrong_usage_there_too(capsys: pytest.CaptureFixture[str], server: OwnServer) -> None:
    assert main(["generate", "Once", "--url", server.url, "--stop-token-ids", "999999"]) == 2
    assert "--stop-token-ids" in capsys.readouterr().err
    assert main(["generate", "Once", "--url", server.url, "--bad-token-ids", "5"]) == 2
    assert "--bad-token-ids" in capsys.readouterr().err


def test_a_load_on_a_real_server_is_answered_whole(capsys: pytest.CaptureFixture[str], server: OwnServer) -> None:
    lengths = ("--prompt-len", "8-40", "--gen-len", "5-20", "--shared-prefix", "6", "--vocab", "300")
    load = ("--requests", "12", "--concurrency", "6", "--warmup", "1", "--rate", "200", "--json", *lengths)
    shown = run(capsys, "bench", "serve", "--url", server.url, *load)
    figures = shown["figures"]
    assert (figures["n_good"], figures["errors"]) == (12, {})
    assert sum(request["n_answer_tokens"] for request in shown["requests"]) == figures["n_answer_tokens"]
    assert all(8 <= request["n_prompt_tokens"] <= 40 for request in shown["requests"])
    assert all(request["event_s"] == sorted(request["event_s"]) for request in shown["requests"])


def test_bench_serve_starts_a_server_and_ends_it(capsys: pytest.CaptureFixture[str]) -> None:
    shown = run(
        capsys, "bench", "serve", "--requests", "2", "--prompt-len", "8", "--gen-len", "4", "--vocab", "300", "--json"
    )
    assert shown["figures"]["n_good"] == 2
    assert shown["figures"]["server_cpu_s"] is not None
    url = shown["workload"]["url"]
    assert main(["generate", "Once", "--url", url]) == 1
    assert "nothing answers" in capsys.readouterr().err


def test_a_server_that_does_not_start_says_why() -> None:
    with pytest.raises(ServerError, match="/no/such/folder"), own_server(ModelOptions(model="/no/such/folder")):
        pass
