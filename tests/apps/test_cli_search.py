"""search and tree: answers in their order, what was looked at in files, and files at the terminal."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_fakes import Program, Ran
from fakes import ByteTokenizer, make_engine

from llm_decoder.cli._options import SamplingOptions, SearchOptions, search_params
from llm_decoder.llm import LLM
from llm_decoder.search.params import SearchParams
from llm_decoder.search.run_file import read_runs

LETTERS = ",".join(str(byte) for byte in b"abcdefgh ")
ASKED = ("search", "once", "--width", "4", "--n", "3", "--max-tokens", "6", "--allowed-token-ids", LETTERS)


class Searching(LLM):
    """A real LLM whose model is made up. It remembers what it was asked."""

    asked: list[tuple[Any, SearchParams]]

    def submit(self, prompt: Any, params: Any = None, **options: Any) -> Any:
        self.asked.append((prompt, params))
        return super().submit(prompt, params, **options)


@pytest.fixture
def llm() -> Iterator[Searching]:
    made = Searching.over(make_engine(), ByteTokenizer(), "made-up")  # type: ignore[arg-type]
    made.asked = []
    yield made
    made.close()


@pytest.fixture
def run(cli: Program, llm: Searching, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`run("search", ...)` runs the program on this LLM, which stays open."""
    monkeypatch.setattr(llm, "close", lambda: None)
    cli.llm = llm  # type: ignore[assignment]
    yield cli
    monkeypatch.undo()


def searched(llm: LLM, **params: Any) -> Any:
    allowed = tuple(b"abcdefgh ")
    (output,) = llm.search(
        "once", SearchParams(**{"width": 4, "n": 3, "max_tokens": 6, "allowed_token_ids": allowed} | params)
    )
    return output


def rows_of(ran: Ran) -> list[list[str]]:
    return [line.split(maxsplit=3) for line in ran.out.splitlines()[1:]]


def test_the_answers_are_a_table_the_best_first(run: Program, llm: Searching) -> None:
    ran = run(*ASKED)
    assert ran.code == 0
    assert ran.out.splitlines()[0].split() == ["#", "beam", "end", "text"]
    expected = searched(llm).outputs
    rows = rows_of(ran)
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert [row[1] for row in rows] == [f"{answer.beam_score:.4f}" for answer in expected]
    assert [json.loads(row[3]) for row in rows] == [answer.text for answer in expected]
    assert "tokens/s" in ran.err


def test_json_is_the_output_without_its_tree(run: Program, llm: Searching) -> None:
    ran = run(*ASKED, "--json", "--quiet")
    output = json.loads(ran.out)
    assert [answer["text"] for answer in output["outputs"]] == [answer.text for answer in searched(llm).outputs]
    assert [answer["beam_rank"] for answer in output["outputs"]] == [0, 1, 2]
    assert "tree" not in output
    assert ran.err == ""


def test_every_field_of_search_params_is_a_flag_and_reaches_the_request() -> None:
    import dataclasses

    names = {field.name for field in dataclasses.fields(SearchParams)} - {
        field.name for field in dataclasses.fields(SamplingOptions)
    }
    assert {field.name for field in dataclasses.fields(SearchOptions)} == names


def test_flags_reach_the_search(run: Program, llm: Searching) -> None:
    flags = {
        **{"--width": "6", "--n": "2", "--length-penalty": "0.5", "--early-stopping": "never", "--groups": "3"},
        **{"--diversity-penalty": "1.5", "--scorer": "likelihood", "--alpha": "0", "--normalise": "zscore"},
        **{"--query": "what?", "--max-tokens": "3", "--temperature": "0.5", "--seed": "7"},
        **{"--separator": r"\n\n", "--step-tokens": "9", "--branches": "3"},
    }
    assert run("search", "once", *(word for pair in flags.items() for word in pair)).code == 0
    ((prompt, params),) = llm.asked
    assert prompt == "once"
    assert params == SearchParams(
        width=6,
        n=2,
        length_penalty=0.5,
        early_stopping="never",
        groups=3,
        diversity_penalty=1.5,
        scorer="likelihood",
        alpha=0.0,
        normalise="zscore",
        query="what?",
        max_tokens=3,
        temperature=0.5,
        seed=7,
        separator="\n\n",
        step_tokens=9,
        branches=3,
    )


def test_a_variable_stands_for_a_flag(run: Program, llm: Searching, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_DECODER_WIDTH", "3")
    assert run("search", "once", "--max-tokens", "2").code == 0
    assert llm.asked[0][1].width == 3


def test_without_a_length_an_answer_ends_where_those_of_other_verbs_do() -> None:
    assert search_params(SamplingOptions(), SearchOptions(), {}).max_tokens == 512


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        (("--width", "0"), "--width"),
        (("--width", "2", "--n", "3"), "--n"),
        (("--groups", "3"), "--groups"),
        (("--early-stopping", "maybe"), "--early-stopping"),
        (("--method", "luck"), "--method"),
        (("--alpha", "2"), "--alpha"),
        (("--scorer", "magic"), "--scorer"),
        (("--scorer", "no_such_module:f"), "--scorer"),
        (("--scorer", "os.path:nothing"), "--scorer"),
        (("--scorer", "os.path:sep"), "--scorer"),
        (("--tree", "tree.gif"), "--tree"),
        (("--tree", "no/such/folder/tree.svg"), "--tree"),
        (("--runs", "runs.txt"), "--runs"),
    ],
)
def test_what_cannot_be_is_wrong_usage_before_a_model_is_loaded(
    run: Program, arguments: tuple[str, ...], flag: str
) -> None:
    ran = run("search", "once", *arguments)
    assert (ran.code, ran.out, run.opened) == (2, "", [])
    assert flag in ran.err


def test_a_function_of_ones_own_ranks_the_answers(
    run: Program, llm: Searching, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "my_scorers_of_this_test.py").write_text(
        "def count_a(prompt, answers):\n    return [answer.count('a') for answer in answers]\n"
    )
    monkeypatch.chdir(tmp_path)
    ran = run(*ASKED, "--scorer", "my_scorers_of_this_test:count_a", "--alpha", "1")
    assert ran.code == 0
    assert ran.out.split()[:4] == ["#", "beam", "rerank", "final"]
    counts = [line.split(maxsplit=5)[5].count("a") for line in ran.out.splitlines()[1:]]
    assert counts == sorted(counts, reverse=True)


def test_a_scorer_that_fails_is_an_error_of_one_line(
    run: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "bad_scorers_of_this_test.py").write_text("def fails(prompt, answers):\n    return [1.0]\n")
    monkeypatch.chdir(tmp_path)
    ran = run(*ASKED, "--scorer", "bad_scorers_of_this_test:fails")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("error: ")
    assert ran.err.count("\n") == 1


def test_in_a_chat_the_prompt_is_a_message(run: Program, llm: Searching, tmp_path: Path) -> None:
    ran = run(*ASKED, "--chat", "--log-prompts", "--tree", str(tmp_path / "tree.jsonl"))
    assert ran.code == 0
    assert llm.asked[0][0] == [{"role": "user", "content": "once"}]
    header = json.loads((tmp_path / "tree.jsonl").read_text().splitlines()[0])
    assert header["prompt"] == "once"


def test_standard_input_is_a_prompt(run: Program, llm: Searching) -> None:
    assert run("search", "-", "--max-tokens", "2", stdin="once\nmore\n").code == 0
    assert llm.asked[0][0] == "once\nmore"


@pytest.mark.parametrize("method", ["beam", "sample", "steps"])
def test_files_have_the_tree(run: Program, llm: Searching, tmp_path: Path, method: str) -> None:
    pytest.importorskip("matplotlib")
    files = [tmp_path / f"tree{suffix}" for suffix in (".png", ".svg", ".pdf", ".html", ".jsonl")]
    ran = run(*ASKED, "--method", method, "--seed", "1", *(word for file in files for word in ("--tree", str(file))))
    assert ran.code == 0
    assert all(file.stat().st_size > 200 for file in files)
    (found,), problems = read_runs(files[-1].read_text().splitlines(), "tree")
    assert not problems
    texts = [json.loads(row[3]) for row in rows_of(ran)]
    assert [candidate["text"] for candidate in found.candidates] == texts
    assert (len(found.tree) > 6) == (method != "sample")
    assert "prompt" not in found.header


def test_runs_are_appended_with_their_prompts_where_that_is_asked_for(run: Program, tmp_path: Path) -> None:
    file = tmp_path / "runs.jsonl"
    run(*ASKED, "--runs", str(file))
    run(*ASKED, "--runs", str(file), "--log-prompts")
    runs, problems = read_runs(file.read_text().splitlines(), "runs")
    assert not problems
    assert [one.header.get("prompt") for one in runs] == [None, "once"]
    assert runs[0].header["prompt_hash"] == runs[1].header["prompt_hash"]


def test_live_tells_a_line_a_step_where_nobody_looks(run: Program, llm: Searching) -> None:
    plain = run(*ASKED)
    ran = run(*ASKED, "--live")
    assert ran.out == plain.out
    lines = [line for line in ran.err.splitlines() if line.startswith("step ")]
    assert len(lines) == 6
    assert lines[0].startswith("step 1: 4 live, 0 finished, 0 let go")
    best = searched(llm).outputs[0].text
    told = [line.split(" | ")[1].strip("'\"") for line in lines]
    assert all(best.strip().startswith(text) for text in told)


def test_live_draws_on_a_terminal_and_leaves_it_clean(run: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    ran = run(*ASKED, "--live", "--quiet")
    assert ran.code == 0
    drawn = screen.getvalue()
    assert "step 6: 0 live, 4 finished" in drawn
    assert drawn.count("\x1b[?25l") == drawn.count("\x1b[?25h") == 1  # the cursor is back
    assert drawn.endswith("\x1b[2K")  # the last that is written erases what was drawn


def test_ctrl_c_ends_a_search_that_is_shown(run: Program, llm: Searching, monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_decoder.cli._search_view import SearchView

    def interrupt(self: SearchView, event: Any, beams: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(SearchView, "take", interrupt)
    ran = run(*ASKED, "--max-tokens", "200", "--live")
    assert (ran.code, ran.out) == (130, "")
    llm.search("another", SearchParams(max_tokens=1))
    assert llm.stats()["n_finished"]["abort"] == 1


@pytest.fixture
def runs(run: Program, tmp_path: Path) -> Path:
    """A file with two runs."""
    file = tmp_path / "runs.jsonl"
    run(*ASKED, "--runs", str(file), "--log-prompts")
    run(*ASKED[:-2], "--allowed-token-ids", "120,121,122", "--runs", str(file))
    return file


def test_tree_shows_every_run_at_the_terminal(run: Program, runs: Path) -> None:
    ran = run("tree", str(runs))
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.count("made-up: beam search, width 4,") == 2
    assert ran.out.count("★ 1: ") == 2
    assert "outscored" in ran.out
    (first, second), _ = read_runs(runs.read_text().splitlines(), "runs")
    for one in (first, second):
        assert all(json.dumps(candidate["text"]) in ran.out for candidate in one.candidates)


def test_tree_shows_the_way_to_the_best_answer_at_the_left(run: Program, runs: Path) -> None:
    ran = run("tree", str(runs), "--run", "1")
    (first, _), _ = read_runs(runs.read_text().splitlines(), "runs")
    trunk = [line[4:].split("  ★")[0] for line in ran.out.splitlines() if line[:4] in ("├── ", "└── ")]
    assert trunk[0] == "once"
    assert "".join(trunk[1:]).replace(" ", "") == first.candidates[0]["text"].replace(" ", "")


@pytest.mark.parametrize("name", ["2", "request"])
def test_tree_takes_a_run_by_its_number_or_its_id(run: Program, runs: Path, name: str) -> None:
    lines = runs.read_text().splitlines()
    header = next(i for i, line in enumerate(lines) if i and '"type": "run"' in line)
    lines[header] = json.dumps(json.loads(lines[header]) | {"id": "request"})
    runs.write_text("\n".join(lines))
    (one,) = [json.loads(line) for line in run("tree", str(runs), "--run", name, "--json").out.splitlines()]
    assert one["id"] == "request"
    assert one["n_nodes"] == one["n_live"] + one["n_finished"] + one["n_pruned"]
    assert len(one["candidates"]) == 3


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf", ".html"])
def test_tree_draws_the_last_run_or_the_one_that_is_named(
    run: Program, runs: Path, tmp_path: Path, suffix: str
) -> None:
    pytest.importorskip("matplotlib")
    last, first = tmp_path / f"last{suffix}", tmp_path / f"first{suffix}"
    assert run("tree", str(runs), "--out", str(last)).code == 0
    assert run("tree", str(runs), "--run", "1", "-o", str(first)).code == 0
    assert last.read_bytes() != first.read_bytes()
    if suffix == ".svg":
        assert ">once</text>" in first.read_text()
        assert ">prompt</text>" in last.read_text()


def test_tree_reads_standard_input(run: Program, runs: Path) -> None:
    ran = run("tree", "-", stdin=runs.read_text())
    assert ran.out.count("★") == 2


def test_tree_tells_bad_lines_by_their_numbers_and_shows_the_rest(run: Program, runs: Path) -> None:
    lines = runs.read_text().splitlines()
    runs.write_text("\n".join([*lines[:3], "{torn", *lines[3:]]))
    ran = run("tree", str(runs))
    assert ran.code == 0
    assert ran.out.count("★") == 2
    assert ran.err.startswith(f"warning: [{runs}] line 4: ")
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file or directory"),
        ("", "need a run of a search, got none"),
        ('{"type": "run", "schema": 2}\n', "line 1: need schema 1, got 2; a later version of the library wrote it"),
        ('{"prompt": "x"}\n', 'line 1: need an object whose "type" is run, node or candidate'),
        ("\x00\xff", "need a run of a search, got none"),
    ],
)
def test_tree_says_what_is_wrong_with_a_file(run: Program, tmp_path: Path, content: str | None, said: str) -> None:
    file = tmp_path / "runs.jsonl"
    if content is not None:
        file.write_text(content)
    ran = run("tree", str(file))
    assert (ran.code, ran.out) == (1, "")
    assert said in ran.err
    assert "error: [" in ran.err


@pytest.mark.parametrize(
    "arguments", [(), ("--run", "1"), ("RUNS", "--run", "3"), ("RUNS", "--run", "x"), ("RUNS", "--out", "tree.gif")]
)
def test_tree_used_wrongly_is_exit_code_2(run: Program, runs: Path, arguments: tuple[str, ...]) -> None:
    ran = run("tree", *(str(runs) if word == "RUNS" else word for word in arguments))
    assert (ran.code, ran.out) == (2, "")


def test_control_characters_of_a_model_do_not_reach_a_terminal(
    run: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = {"id": 1, "parent": 0, "step": 1, "token_id": 5, "logprob": -1, "cum_logprob": -1, "score": -1}
    lines = [
        {"type": "run", "schema": 1, "id": "a\x1b[2J", "model": "m\x1b[2J"},
        {"type": "node", **node, "state": "finished", "reason": "\x1b[2J", "text": "t\x1b[2J"},
        {"type": "candidate", "leaf": 1, "text": "t\x1b[2J", "beam_score": -1.0, "finish_reason": "\x1b[2J"},
    ]
    file = tmp_path / "runs.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines))
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert "\x1b[2J" not in run("tree", str(file)).out


def test_help_of_these_verbs_needs_no_heavy_import(monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    code = (
        "import sys; from llm_decoder.cli.main import main; main(['search', '--help']); main(['tree', '--help']);"
        "sys.exit(bool({'numpy', 'matplotlib', 'llm_decoder.llm', 'jinja2'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
