"""search --url: a server searches, and what is shown and kept here is what a model that is loaded here would give."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_fakes import Program
from scripted_server import Reply, ScriptedServer, of_json, refusal, stream

sys.path.append(str(Path(__file__).parents[1] / "advisories"))

from two_servers import Api, Running, Web

from llm_decoder.cli import _remote
from llm_decoder.search.run_file import SearchRun, read_runs

ASKED = ("search", "Once upon", "--width", "4", "--n", "3", "--max-tokens", "6", "--quiet")


class Length:
    """A reranker that likes long answers."""

    name = "length"

    def score(self, query: str, documents: Any) -> list[float]:
        return [float(len(document)) for document in documents]


@pytest.fixture(scope="module", params=[Api, Web], ids=["fastapi", "flask"])
def server(request: pytest.FixtureRequest) -> Iterator[Running]:
    running: Running = request.param()
    running.model.llm._companions._reranker = Length()  # type: ignore[assignment]
    yield running
    running.end()


@pytest.fixture
def both(cli: Program, server: Running, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`both("search", ...)`: how it ran here and at the server."""
    llm = server.model.llm
    monkeypatch.setattr(llm, "close", lambda: None)
    cli.llm = llm  # type: ignore[assignment]

    def run(*arguments: str, stdin: str = "") -> Any:
        here = cli(*arguments, stdin=stdin)
        cli.opened.clear()
        there = cli(*arguments, "--url", f"http://127.0.0.1:{server.port}", stdin=stdin)
        assert not cli.opened, "a model was loaded here"
        return here, there

    yield run
    monkeypatch.undo()


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--groups", "2", "--diversity-penalty", "0.5", "--length-penalty", "0", "--early-stopping", "never"),
        ("--method", "sample", "--seed", "3", "--temperature", "0"),
        ("--method", "sample", "--seed", "3"),
        ("--method", "steps", "--seed", "3", "--branches", "3", "--step-tokens", "2", "--separator", r"\n"),
        ("--scorer", "likelihood", "--alpha", "0.7", "--normalise", "zscore", "--query", "What?"),
        ("--scorer", "reranker", "--alpha", "1"),
        ("--chat", "--stop", "e", "--logprobs", "2"),
    ],
    ids=" ".join,
)
def test_a_server_finds_what_is_found_here(both: Any, flags: tuple[str, ...]) -> None:
    here, there = both(*ASKED, *flags)
    assert (there.code, there.err) == (0, "")
    assert there.out == here.out
    one, other = (json.loads(ran.out) for ran in both(*ASKED, *flags, "--json"))
    assert other["prompt_token_ids"] == one["prompt_token_ids"]
    for name in ("n_prompt_tokens", "n_generated_tokens", "n_dropped_beams"):
        assert other["metrics"][name] == one["metrics"][name]
    for a, b in zip(one["outputs"], other["outputs"], strict=True):
        for entry in (*a.get("logprobs", ()), *b.get("logprobs", ())):
            del entry["rank"]  # which the server tells of likely tokens alone
        assert a == b


@pytest.mark.parametrize(
    "flags", [(), ("--method", "steps", "--seed", "3", "--step-tokens", "2"), ("--chat",)], ids=str
)
def test_files_of_a_servers_search_have_its_whole_tree(both: Any, tmp_path: Path, flags: tuple[str, ...]) -> None:
    file = tmp_path / "runs.jsonl"
    picture = tmp_path / "tree.svg"
    _, there = both(*ASKED, *flags, "--runs", str(file), "--log-prompts", "--tree", str(picture))
    assert there.code == 0
    (here, remote), problems = read_runs(file.read_text().splitlines(), "runs")
    assert not problems
    assert len(remote.tree) > 12
    assert remote.tree.nodes == here.tree.nodes
    assert (remote.texts, remote.candidates) == (here.texts, here.candidates)
    same = ("model", "prompt_hash", "prompt", "params", "seed")
    assert [remote.header[name] for name in same] == [here.header[name] for name in same]
    assert remote.header["id"].startswith("req-")
    assert picture.stat().st_size > 500


def test_live_shows_a_servers_search_as_it_shows_one_here(both: Any) -> None:
    here, there = both(*ASKED, "--live", "--scorer", "likelihood")
    assert here.err.count("\nstep ") == 5
    assert (there.out, there.err) == (here.out, here.err)


def test_what_the_server_refuses_is_wrong_usage_of_its_flag(both: Any) -> None:
    for flags in (("--stop-token-ids", "999999"), ("--alpha", "0.3"), ("--prompt-logprobs", "1")):
        _, there = both(*ASKED, *flags)
        assert (there.code, there.out) == (2, "")
        assert flags[0] in there.err


def test_the_system_message_goes_before_the_prompt_of_a_chat(both: Any, tmp_path: Path) -> None:
    file = str(tmp_path / "runs.jsonl")
    both(*ASKED, "--chat", "--runs", file)
    _, there = both(*ASKED, "--chat", "--system", "Be brief.", "--runs", file)
    assert there.code == 0
    plain, _, _, told = runs_of(file)
    assert told.header["prompt_hash"] != plain.header["prompt_hash"]


def runs_of(file: str) -> list[SearchRun]:
    runs, problems = read_runs(Path(file).read_text().splitlines(), "runs")
    assert not problems
    return runs


def test_a_chat_with_a_server_is_searched_as_one_here(both: Any, cli: Program, server: Running, tmp_path: Path) -> None:
    talk = ("chat", "--max-tokens", "5", "--quiet")
    here, there = both(*talk, stdin="/search 3\nHi\n/set scorer likelihood\nMore\n/search\n")
    assert (there.code, there.out) == (0, here.out)
    assert "Each answer is the best of 3" in there.err
    file = str(tmp_path / "tree.jsonl")
    ran = cli(*talk, "--url", f"http://127.0.0.1:{server.port}", stdin=f"/search 3\nHi\n/tree {file}\n")
    assert ran.code == 0
    (run,) = runs_of(file)
    assert ran.out == run.candidates[0]["text"] + "\n"
    assert run.texts[run.tree.path(run.candidates[0]["leaf"])[0].id]


def test_a_function_of_ones_own_cannot_go_to_a_server(cli: Program) -> None:
    ran = cli("search", "Once", "--url", "http://127.0.0.1:1", "--scorer", "my_scorers:longest")
    assert (ran.code, ran.out) == (2, "")
    assert "--scorer: a function of yours cannot run on a server, got my_scorers:longest" in ran.err


@pytest.mark.parametrize("flag", [("--threads", "2"), ("--reranker", "folder")])
def test_flags_of_a_model_that_is_loaded_here_do_not_go_with_a_url(cli: Program, flag: tuple[str, ...]) -> None:
    ran = cli("search", "Once", "--url", "http://127.0.0.1:1", *flag)
    assert ran.code == 2
    assert flag[0] in ran.err


@pytest.fixture
def scripted() -> Iterator[ScriptedServer]:
    made = ScriptedServer()
    yield made
    made.close()


def error_of(cli: Program, scripted: ScriptedServer, reply: Reply) -> str:
    scripted.replies = [reply]
    ran = cli("search", "Once", "--url", scripted.url)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.count("\n") == 1
    return ran.err


def test_a_server_of_another_kind_is_told_in_one_line(cli: Program, scripted: ScriptedServer) -> None:
    said = error_of(cli, scripted, refusal(404, "no such route", code="no_such_route"))
    assert "has no /stream_chat_beam: searches need a server of this project" in said
    assert "has no /stream_chat_beam" in error_of(cli, scripted, of_json({}, 404))


def test_an_error_of_the_server_is_told_in_one_line(cli: Program, scripted: ScriptedServer) -> None:
    failed = {"error": {"message": "[scorer] reranker gave\nnan", "code": "failed"}}
    assert "[scorer] reranker gave nan" in error_of(cli, scripted, stream(failed))
    assert "out of memory" in error_of(cli, scripted, refusal(500, "out of memory"))


STEP = {"step": 1, "live": [{"leaf": 1, "score": -1.0, "tail": "a"}], "finished": 0}
NODE = {"id": 1, "parent": 0, "step": 1, "token_id": 5, "logprob": -1.0, "cum_logprob": -1.0, "score": -1.0}


def named(name: str, data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [b'data: {"text": "a", "token_ids": [1]}\n\n'],
        [b'data: {"text": "a", "token_ids": [1], "finish_reason": "stop"}\n\n'],
        [b"data: 7\n\n"],
        [named("beam.step", {"step": 1})],
        [named("beam.step", STEP | {"nodes": [NODE]})],
        [named("beam.step", STEP | {"nodes": [NODE | {"text": "a", "id": 2}]})],
        [named("beam.prune", {"node": 1, "reason": "outscored"})],
        [named("rerank", {"choices": [{}]})],
    ],
)
def test_what_is_no_search_is_an_error(cli: Program, scripted: ScriptedServer, pieces: list[bytes]) -> None:
    headers = {"content-type": "text/event-stream"}
    said = error_of(cli, scripted, Reply([*pieces, b"data: [DONE]\n\n"], headers=headers))
    assert "is this the right --url?" in said


def test_ctrl_c_ends_the_servers_search(cli: Program, server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    n_before = aborted(server)
    with monkeypatch.context() as patched:
        patched.setattr(_remote.GatheredSearch, "_begin", interrupt)
        url = f"http://127.0.0.1:{server.port}"
        ran = cli("search", "Once", "--ignore-eos", "--max-tokens", "900", "--url", url)
    assert (ran.code, ran.out) == (130, "")
    end_s = time.monotonic() + 60
    while aborted(server) == n_before and time.monotonic() < end_s:
        time.sleep(0.01)
    assert aborted(server) == n_before + 1
    assert server.serves_the_next()


def aborted(server: Running) -> int:
    stats = server.service.stats()
    assert stats is not None
    n_aborted: int = stats["n_finished"]["abort"]
    return n_aborted
