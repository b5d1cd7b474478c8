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
