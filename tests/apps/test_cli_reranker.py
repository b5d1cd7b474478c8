"""The verbs that label runs, judge rerankers and finetune them, on files; finetuning itself is in tests/judge."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cli_fakes import Program

import llm_decoder
from llm_decoder import embedded
from llm_decoder.errors import ConfigError
from llm_decoder.reranker.evaluate import evaluate
from llm_decoder.reranker.evaluation_picture import write_picture
from llm_decoder.reranker.groups import Group, read_groups

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def run(*values: object, name: str = "runs.jsonl") -> Path:
        path = tmp_path / name
        lines = [value if isinstance(value, str) else json.dumps(value) for value in values]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return path

    return run


RUN = {"type": "run", "schema": 1, "id": "1", "prompt_hash": "h1", "prompt": "2 + 2"}
SECOND = {"type": "run", "schema": 1, "id": "2", "prompt_hash": "h2", "prompt": "3 + 3"}


def candidate(text: str, **fields: object) -> dict[str, object]:
    return {"type": "candidate", "leaf": 1, "text": text, "beam_score": -1.0, **fields}


@pytest.fixture
def logged(write: Write) -> Path:
    return write(RUN, candidate("4"), candidate("5"), SECOND, candidate("four"), candidate("6"), candidate("7"))


def labels_in(path: Path) -> list[tuple[float | None, ...]]:
    groups, problems = read_groups(path)
    assert problems == []
    return [group.labels for group in groups]


def test_a_rule_labels_all_groups(cli: Program, logged: Path, tmp_path: Path) -> None:
    ran = cli("label", str(logged), "-o", str(tmp_path / "out"), "--rule", "regex", "--answer", "^[46]$")
    assert (ran.code, ran.out) == (0, f"{tmp_path / 'out'}: 2 of 2 groups labelled\n")
    assert labels_in(tmp_path / "out") == [(1, 0), (0, 1, 0)]


def test_a_rule_looks_for_the_answer_of_each_query(cli: Program, logged: Path, tmp_path: Path, write: Write) -> None:
    answers = write({"query": "3 + 3", "answer": "6"}, "{", name="answers.jsonl")
    ran = cli("label", str(logged), "-o", str(tmp_path / "out"), "--rule", "exact", "--answers", str(answers), "--json")
    assert json.loads(ran.out)["n_labelled"] == 1
    assert "answers.jsonl] line 2" in ran.err
    assert labels_in(tmp_path / "out") == [(0, 1, 0)]


def test_a_rule_may_be_a_function_in_the_current_folder(
    cli: Program, logged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_rule_file.py").write_text("def is_digit(query, candidate):\n    return candidate.isdigit()\n")
    monkeypatch.chdir(tmp_path)
    assert cli("label", str(logged), "-o", "out", "--rule", "my_rule_file:is_digit").code == 0
    assert labels_in(tmp_path / "out") == [(1, 1), (0, 1, 1)]


def test_a_rule_does_not_mix_its_labels_with_others(cli: Program, logged: Path, tmp_path: Path) -> None:
    arguments = ("label", str(logged), "-o", str(tmp_path / "out"), "--rule", "contains", "--answer", "4")
    assert cli(*arguments).code == 0
    ran = cli(*arguments)
    assert ran.code == 1
    assert "need a new file for the labels of a rule" in ran.err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--rule", "exact"], "needs one of --answer and --answers"),
        (["--rule", "best"], "need exact, contains, regex or module:function"),
        (["--answer", "4"], "only exact, contains, regex look for an answer"),
    ],
)
def test_a_rule_that_cannot_be_is_wrong_usage(
    cli: Program, logged: Path, tmp_path: Path, arguments: list[str], reason: str
) -> None:
    ran = cli("label", str(logged), "-o", str(tmp_path / "out"), *arguments)
    assert ran.code == 2
    assert reason in " ".join(ran.err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["operator:", "operator:no_such", "no_such_module:f", ":f", "string:digits"])
def test_a_name_that_is_no_callable_is_told(cli: Program, logged: Path, tmp_path: Path, name: str) -> None:
    ran = cli("label", str(logged), "-o", str(tmp_path / "out"), "--rule", name)
    assert ran.code == 2
    assert name in ran.err


def test_by_hand_each_candidate_is_asked_for_until_the_best_is_named(
    cli: Program, logged: Path, tmp_path: Path
) -> None:
    ran = cli("label", str(logged), "-o", str(tmp_path / "out"), stdin="1\nwhat\n2\n0.5\n0\nb\n")
    assert (ran.code, ran.out) == (0, f"{tmp_path / 'out'}: 2 of 2 groups labelled\n")
    assert labels_in(tmp_path / "out") == [(1, 0.5), (0, 1, 0)]
    assert ran.err.index("2 + 2") < ran.err.index("candidate 1 of 2") < ran.err.index("3 + 3")


def test_by_hand_the_same_command_goes_on_with_the_rest(cli: Program, logged: Path, tmp_path: Path) -> None:
    arguments = ("label", str(logged), "-o", str(tmp_path / "out"))
    ran = cli(*arguments, stdin="s\nb\nq\n")
    assert ran.out.endswith("1 of 2 groups labelled\n")
    assert labels_in(tmp_path / "out") == [(1, 0, 0)]
    ran = cli(*arguments, stdin="0\n")  # and the input ends
    assert labels_in(tmp_path / "out") == [(1, 0, 0)]
    assert "3 + 3" not in ran.err
    ran = cli(*arguments, stdin="0\n1\n")
    assert ran.out.endswith("1 of 2 groups labelled (1 before)\n")
    assert labels_in(tmp_path / "out") == [(1, 0, 0), (0, 1)]


def test_a_candidate_cannot_command_the_terminal(cli: Program, write: Write, tmp_path: Path) -> None:
    ran = cli("label", str(write(RUN, candidate("a\x1b[2Jb [bold]c"))), "-o", str(tmp_path / "out"), stdin="1\n")
    assert "a[2Jb [bold]c" in ran.err


def test_runs_without_prompts_are_refused_or_joined(cli: Program, write: Write, tmp_path: Path) -> None:
    path = write({"type": "run", "schema": 1, "id": "1", "prompt_hash": "h1"}, candidate("4"), candidate("5"))
    arguments = ("label", str(path), "-o", str(tmp_path / "out"), "--rule", "exact", "--answer", "4")
    ran = cli(*arguments)
    assert ran.code == 1
    assert "log with --log-prompts, or give --prompts FILE" in ran.err
    known = write({"prompt_hash": "h1", "prompt": "2 + 2"}, name="prompts.jsonl")
    assert cli(*arguments, "--prompts", str(known)).code == 0
    assert read_groups(tmp_path / "out")[0][0].query == "2 + 2"


@pytest.fixture
def labelled(write: Write) -> Path:
    lines = [
        {"query": f"query {number}", "candidates": ["wrong", "right one"], "labels": [0, 1], "beam_scores": [-1, -2]}
        for number in range(6)
    ]
    return write(*lines, {"query": "equal", "candidates": ["a", "b"], "labels": [1, 1]}, "{", name="groups.jsonl")


class ShortIsBest:
    """In place of a cross-encoder."""

    def __init__(self, folder: str, **options: object) -> None:
        self.options = options

    def score(self, query: str, documents: list[str]) -> list[float]:
        return [-float(len(document)) for document in documents]


@pytest.fixture
def _fake_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_decoder, "CrossEncoder", ShortIsBest, raising=False)
    monkeypatch.setattr(embedded, "embedded_reranker", lambda: Path("/shipped/reranker"))


@pytest.mark.usefixtures("_fake_encoder")
def test_the_embedded_reranker_is_judged_beside_the_baselines(cli: Program, labelled: Path) -> None:
    ran = cli("rerank-eval", str(labelled), "--resamples", "100")
    assert ran.code == 0
    tables = [[line.split() for line in part.splitlines()] for part in ran.out.split("\n\n")]
    assert [row[0] for row in tables[0]] == ["SCORER", "reranker", "log_probability", "shortest", "longest", "chance"]
    assert tables[0][0][1:] == ["ACCURACY", "MRR", "NDCG@10"]
    assert tables[0][1][1] == "0.000"
    assert tables[1][0][:2] == ["reranker", "minus"]
    assert tables[1][2][:2] == ["shortest", "+0.000"]
    assert "6 groups of 6 queries" in ran.out
    assert "groups.jsonl] line 8" in ran.err
    assert "1 groups were left out" in ran.err


@pytest.mark.usefixtures("_fake_encoder")
def test_the_settings_reranker_is_judged_where_none_is_named(
    cli: Program, labelled: Path, settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("rerank-eval", str(labelled), "--resamples", "100", "--json", "--config", str(settings))
    judged = [scorer["name"] for scorer in json.loads(cli(*asked).out)["scorers"]]
    assert judged[0] == "theirs"
    judged = [scorer["name"] for scorer in json.loads(cli(*asked, "--reranker", "a/mine").out)["scorers"]]
    assert judged[0] == "mine"
    assert "theirs" not in judged
    monkeypatch.setenv("LLM_DECODER_RERANKER", "of/the/environment")
    assert json.loads(cli(*asked).out)["scorers"][0]["name"] == "environment"


def test_the_settings_reranker_is_finetuned_where_none_is_named(
    cli: Program, labelled: Path, settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bases = []

    def finetune(groups: object, base: object, *_: object, **__: object) -> None:
        bases.append(str(base))
        raise ConfigError("[finetune] this is only asked for its base")

    monkeypatch.setattr("llm_decoder.reranker.finetune.need_training_libraries", lambda: None)
    monkeypatch.setattr("llm_decoder.reranker.finetune.finetune", finetune)
    asked = ("finetune-reranker", str(labelled), "--out", str(tmp_path / "out"), "--config", str(settings))
    assert "only asked for its base" in cli(*asked).err
    cli(*asked, "--model", "a/mine")
    assert bases == ["some/theirs", "a/mine"]


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    """A settings folder that names a reranker."""
    folder = tmp_path / "settings"
    folder.mkdir()
    (folder / "paths.json").write_text(json.dumps({"reranker": "some/theirs"}))
    return folder


@pytest.mark.usefixtures("_fake_encoder")
def test_rerankers_of_one_name_cannot_be_told_apart(cli: Program, labelled: Path) -> None:
    assert cli("rerank-eval", str(labelled), "--reranker", "a/new", "--reranker", "b/old").code == 0
    ran = cli("rerank-eval", str(labelled), "--reranker", "a/new", "--reranker", "b/new")
    assert ran.code == 2
    assert "got new twice" in ran.err


def test_a_callable_is_judged_and_compared(
    cli: Program, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "def right(query, candidates):\n    return [candidate.startswith('right') for candidate in candidates]\n"
    (tmp_path / "my_scorer_file.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    ran = cli("rerank-eval", str(labelled), "--scorer", "my_scorer_file:right", "--resamples", "100", "--json")
    found = json.loads(ran.out)
    assert found["scorers"][0]["name"] == "my_scorer_file:right"
    assert found["scorers"][0]["accuracy"] == {"mean": 1.0, "low": 1.0, "high": 1.0}
    assert found["differences"][0] == {
        "name": "log_probability",
        "accuracy": {"mean": 1.0, "low": 1.0, "high": 1.0},
        "mrr": {"mean": 0.5, "low": 0.5, "high": 0.5},
        "ndcg": pytest.approx(found["differences"][0]["ndcg"]),
    }


@pytest.mark.usefixtures("_fake_encoder")
def test_nothing_labelled_is_told(cli: Program, logged: Path) -> None:
    ran = cli("rerank-eval", str(logged))
    assert ran.code == 1
    assert "label some first" in ran.err


def test_a_missing_file_is_told(cli: Program, tmp_path: Path) -> None:
    ran = cli("rerank-eval", str(tmp_path / "none.jsonl"))
    assert ran.code == 1
    assert "none.jsonl] No such file" in ran.err


def test_figures_are_drawn(tmp_path: Path) -> None:
    groups = [Group(f"{number}", ("a", "b"), (1, 0)) for number in range(4)]
    evaluation = evaluate(groups, {"first": lambda query, candidates: [1.0, 0.0]}, n_resamples=10)
    write_picture(tmp_path / "figures.svg", evaluation)
    drawn = (tmp_path / "figures.svg").read_text()
    assert "<svg" in drawn
    write_picture(tmp_path / "figures.png", evaluation)
    assert (tmp_path / "figures.png").read_bytes().startswith(b"\x89PNG")


def test_a_name_that_is_no_pictures_is_refused_before_anything_is_scored(cli: Program, labelled: Path) -> None:
    ran = cli("rerank-eval", str(labelled), "--plot", "figures.gif")
    assert ran.code == 1
    assert ".png, .svg, .pdf" in ran.err


def test_without_the_training_libraries_the_command_that_installs_them_is_told(
    cli: Program, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "accelerate" else found(name, *rest)
    )
    ran = cli("finetune-reranker", str(labelled), "--model", str(tmp_path), "--out", str(tmp_path / "out"))
    assert ran.code == 1
    assert "accelerate; pip install 'llm_decoder[train]'" in ran.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "arguments", [["--loss", "best"], ["--learning-rate", "0"], ["--eval-share", "1"], ["--epochs", "0"]]
)
def test_a_setting_that_cannot_be_is_wrong_usage(
    cli: Program, labelled: Path, tmp_path: Path, arguments: list[str]
) -> None:
    ran = cli("finetune-reranker", str(labelled), "--model", str(tmp_path), "--out", str(tmp_path / "out"), *arguments)
    assert ran.code == 2
