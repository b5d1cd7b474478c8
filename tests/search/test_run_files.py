"""Searches in files: written, read again, and what is wrong with a line told by its number."""

import json
import re

import pytest
from fakes import ByteTokenizer, Desk, FakeBackend

from llm_decoder.search.params import SearchParams
from llm_decoder.search.run_file import node_texts, read_runs, run_lines
from llm_decoder.search.tree import SearchTree


def searched(**params):
    output = Desk(FakeBackend()).ask("once", width=4, n=3, max_tokens=6, **params)
    params = SearchParams(width=4, n=3, max_tokens=6, **params)
    return output, list(run_lines(output, params, model="fake", tokenizer=ByteTokenizer(), log_prompt=True))


def node(**fields):
    """The line of a node that could come after four others."""
    numbers = {"id": 5, "parent": 0, "step": 1, "token_id": 7, "logprob": -1.0, "cum_logprob": -1.0, "score": -1.0}
    return json.dumps({"type": "node", "text": "a", "state": "live", "reason": "", **numbers, **fields})


def test_what_was_written_is_read():
    output, lines = searched()
    (run,), problems = read_runs(lines, "runs.jsonl")
    assert not problems
    assert run.header["model"] == "fake"
    assert run.header["params"] == {"n": 3, "max_tokens": 6, "temperature": 0.0}
    assert run.tree.nodes[1:] == output.tree.nodes[1:]
    assert [candidate["text"] for candidate in run.candidates] == [answer.text for answer in output.outputs]
    for candidate in run.candidates:
        path = run.tree.path(candidate["leaf"])
        assert candidate["text"].startswith("".join(run.texts[node.id] for node in path))


def test_every_score_of_a_candidate_is_written():
    output, lines = searched(scorer=lambda prompt, answers: range(len(answers)), alpha=1.0)
    (run,), _ = read_runs(lines, "runs.jsonl")
    for candidate, answer in zip(run.candidates, output.outputs, strict=True):
        assert candidate["beam_score"] == answer.beam_score
        assert candidate["rerank_score"] == answer.rerank_score
        assert candidate["final_score"] == answer.final_score
    assert "scorer" not in run.header["params"]


def test_prompts_stay_out_unless_they_are_asked_for():
    output, _ = searched()
    lines = run_lines(output, SearchParams(), model="fake", tokenizer=ByteTokenizer())
    assert "prompt" not in json.loads(next(iter(lines)))


def test_a_character_of_several_tokens_is_with_its_last():
    tree = SearchTree()
    node = tree.ROOT
    for byte in "né€".encode():
        node = tree.add(node, byte, -1.0, -1.0, "live", "")
    texts = node_texts(tree, ByteTokenizer(), [])
    assert list(texts.values()) == ["n", "", "é", "", "", "€"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "Expecting"),
        ("[" * 100_000, "recursion|Expecting"),
        ("[]", "need an object"),
        ('{"type": "leaf"}', "need an object"),
        ('{"type": "run", "schema": 2}', "need schema 1"),
        ('{"type": "node", "id": 1}', "missing"),
        ('{"type": "candidate"}', "'text' is missing"),
        ('{"type": "candidate", "text": 3}', "text must be"),
        (node(id=True), "id must be an integer"),
        (node(step="1"), "step must be an integer"),
        (node(logprob=float("nan")), "logprob must be a finite number"),
        (node(score="high"), "score must be a finite number"),
        (node(state="lost"), "state must be one of live, finished, pruned"),
        (node(reason=3), "reason a string"),
        (node(text=None), "text must be"),
        (node(step=9), "step must be 1, one more than its parent's"),
        (node(colour="red"), "colour"),
    ],
)
def test_a_broken_line_is_told_by_its_number_and_the_rest_is_kept(line, reason):
    output, lines = searched()
    runs, problems = read_runs([*lines[:5], line + "\n", *lines[5:]], "runs.jsonl")
    assert len(runs) == 1
    assert len(runs[0].tree) == len(output.tree)
    (problem,) = problems
    assert "runs.jsonl] line 6" in str(problem)
    assert re.search(reason, str(problem))


def test_a_node_without_its_parent_is_left_out():
    _, lines = searched()
    runs, problems = read_runs([lines[0], lines[3]], "runs.jsonl")
    assert len(runs[0].tree) == 1
    assert "line 2" in str(problems[0])


def test_what_follows_a_header_that_cannot_be_read_is_none_of_the_run_before_it():
    _, lines = searched()
    later = lines[0].replace('"schema": 1', '"schema": 2')
    runs, problems = read_runs([*lines, later, *lines[1:]], "runs.jsonl")
    assert len(runs) == 1
    assert len(runs[0].candidates) == 3
    assert len(problems) == len(lines)
    assert "needs the header of its run" in str(problems[-1])


def test_a_header_that_was_lost_is_noticed_at_its_first_node():
    _, lines = searched()
    runs, problems = read_runs([*lines, "{torn", *lines[1:]], "runs.jsonl")
    assert len(runs) == 1
    assert len(runs[0].candidates) == 3
    assert len(problems) == len(lines)


def test_candidates_have_the_scores_of_a_scorer():
    output, _ = searched()
    for answer in output.outputs:
        answer.rerank_score, answer.final_score = 2.0, 1.0
    lines = run_lines(output, SearchParams(), model="fake", tokenizer=ByteTokenizer())
    ((run,), _) = read_runs(lines, "runs.jsonl")
    assert [(one["rerank_score"], one["final_score"]) for one in run.candidates] == [(2.0, 1.0)] * 3
