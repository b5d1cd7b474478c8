"""Searches as JSONL, one object a line: a run's header, the nodes of its tree, its candidates.

The schema is version 1. A reader skips what it cannot read and tells the line; a later version is refused by name.

    {"type": "run", "schema": 1, "id", "model", "prompt_hash", "prompt"?, "params", "seed", "created"}
    {"type": "node", "id", "parent", "step", "token_id", "text", "logprob", "cum_logprob", "score", "state", "reason"}
    {"type": "candidate", "leaf", "text", "beam_score", "rerank_score", "final_score", "finish_reason", "label"?}

Prompts are stored only where that is asked for; their SHA-256 always is, so that runs of one prompt can be told.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, get_args

from llm_decoder.detokenizer import Detokenizer, TextDecoder
from llm_decoder.errors import MalformedFileError
from llm_decoder.outputs import RequestOutput
from llm_decoder.search.params import SearchParams
from llm_decoder.search.tree import NodeState, SearchTree, TreeNode

__all__ = ["SCHEMA", "SearchRun", "node_texts", "prompt_hash", "read_node", "read_runs", "recorded", "run_lines"]

SCHEMA = 1


@dataclass
class SearchRun:
    """One run as it stands in a file. candidates: mappings as there, the best first."""

    header: dict[str, Any]
    tree: SearchTree = field(default_factory=SearchTree)
    texts: dict[int, str] = field(default_factory=dict)  # of nodes
    candidates: list[dict[str, Any]] = field(default_factory=list)

    def add(self, node: TreeNode, text: str) -> None:
        """Raises ValueError for a node that is not the next one."""
        _check_place(node, self.tree)
        self.tree.nodes.append(node)
        self.texts[node.id] = text

    def lines(self) -> Iterator[str]:
        """As they are written to a file, each ending with a line feed."""
        yield _line({"type": "run", **self.header})
        for node in self.tree:
            if node.id != self.tree.ROOT:
                yield _line({"type": "node", **_fields_of(node), "text": self.texts[node.id]})
        for candidate in self.candidates:
            yield _line({"type": "candidate", **candidate})


def run_lines(
    output: RequestOutput,
    params: SearchParams,
    *,
    model: str,
    tokenizer: TextDecoder,
    seed: int | None = None,
    log_prompt: bool = False,
) -> Iterator[str]:
    """The lines of one search. tokenizer: makes the nodes' texts."""
    texts = {} if output.tree is None else node_texts(output.tree, tokenizer, output.prompt_token_ids)
    return recorded(output, params, model=model, texts=texts, seed=seed, log_prompt=log_prompt).lines()


def recorded(
    output: RequestOutput,
    params: SearchParams,
    *,
    model: str,
    texts: dict[int, str],
    seed: int | None = None,
    log_prompt: bool = False,
) -> SearchRun:
    """One search as a run. texts: of its nodes."""
    header: dict[str, Any] = {
        "schema": SCHEMA,
        "id": output.request_id,
        "model": model,
        "prompt_hash": prompt_hash(output),
        "params": _given(params),
        "seed": params.seed if seed is None else seed,
        "created": int(time.time()),
    }
    if log_prompt:
        header["prompt"] = output.prompt
    candidates: list[dict[str, Any]] = [
        {
            "leaf": completion.tree_leaf,
            "text": completion.text,
            "beam_score": completion.beam_score,
            "rerank_score": completion.rerank_score,
            "final_score": completion.final_score,
            "finish_reason": completion.finish_reason,
        }
        for completion in output.outputs
    ]
    return SearchRun(header, output.tree or SearchTree(), texts, candidates)


def prompt_hash(output: RequestOutput) -> str:
    return hashlib.sha256(json.dumps(output.prompt_token_ids).encode()).hexdigest()


def node_texts(tree: SearchTree, tokenizer: TextDecoder, prompt_ids: Sequence[int]) -> dict[int, str]:
    """What each node adds to the text of those above it. A character that takes several tokens is with its last."""
    detokenizers = {tree.ROOT: Detokenizer(tokenizer, prompt_ids[-16:])}
    texts: dict[int, str] = {}
    for node in tree:
        if node.id != tree.ROOT:
            detokenizer = detokenizers[node.parent].copy()
            texts[node.id] = detokenizer.push((node.token_id,))
            detokenizers[node.id] = detokenizer
    return texts


def _fields_of(node: TreeNode) -> dict[str, Any]:
    return {item.name: getattr(node, item.name) for item in fields(TreeNode)}


def _given(params: SearchParams) -> dict[str, Any]:
    """The fields that differ from their defaults."""
    return {
        item.name: getattr(params, item.name)
        for item in fields(params)
        if getattr(params, item.name) != item.default and not callable(getattr(params, item.name))
    }


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, default=str) + "\n"


def read_runs(lines: Iterable[str], place: str) -> tuple[list[SearchRun], list[MalformedFileError]]:
    """The runs of a file, and what was wrong with the lines that are left out, by their numbers."""
    reader = _Reader()
    problems: list[MalformedFileError] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            reader.take(json.loads(line))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            problems.append(MalformedFileError(f"[{place}] line {number}: {_reason(error)}; the line is left out"))
    return reader.runs, problems


class _Reader:
    """Knows to which run a line belongs, also where a header was lost or could not be read: what is then no
    continuation of the run before it belongs to none."""

    def __init__(self) -> None:
        self.runs: list[SearchRun] = []
        self._open: SearchRun | None = None
        self._is_doubtful = False  # the last header could not be read

    def take(self, value: Any) -> None:
        if not isinstance(value, dict) or value.get("type") not in ("run", "node", "candidate"):
            raise ValueError('need an object whose "type" is run, node or candidate')
        kind = value.pop("type")
        if kind == "run":
            self._begin(value)
        elif kind == "node":
            self._add_node(value)
        else:
            self._add_candidate(value)

    def _begin(self, value: dict[str, Any]) -> None:
        self._is_doubtful = True
        if value.get("schema") != SCHEMA:
            raise ValueError(
                f"need schema {SCHEMA}, got {value.get('schema')!r:.20}; a later version of the library wrote it"
            )
        self._is_doubtful = False
        self._open = SearchRun(value)
        self.runs.append(self._open)

    def _add_node(self, value: dict[str, Any]) -> None:
        node, text = read_node(value)
        if node.id == 1 and self._open is not None and (self._is_doubtful or len(self._open.tree) > 1):
            self._open = None
        self._of_open("node").add(node, text)
        self._is_doubtful = False

    def _add_candidate(self, value: dict[str, Any]) -> None:
        if not isinstance(value["text"], str):
            raise ValueError("text must be a string")
        if self._is_doubtful:
            self._open = None
        self._of_open("candidate").candidates.append(value)

    def _of_open(self, kind: str) -> SearchRun:
        if self._open is None:
            raise ValueError(f"a {kind} needs the header of its run before it")
        return self._open


def read_node(value: dict[str, Any]) -> tuple[TreeNode, str]:
    """A node and its text, of an object that has the names of both. Raises KeyError, TypeError, ValueError."""
    text = value.pop("text")
    node = TreeNode(**value)
    if not isinstance(text, str):
        raise ValueError("text must be a string")
    _check_fields(node)
    return node, text


def _check_fields(node: TreeNode) -> None:
    for name in ("id", "parent", "step", "token_id"):
        if type(getattr(node, name)) is not int:
            raise ValueError(f"{name} must be an integer")
    for name in ("logprob", "cum_logprob", "score"):
        value = getattr(node, name)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number")
    if node.state not in get_args(NodeState) or not isinstance(node.reason, str):
        raise ValueError(f"state must be one of {', '.join(get_args(NodeState))}, and reason a string")


def _check_place(node: TreeNode, tree: SearchTree) -> None:
    if node.id != len(tree) or not 0 <= node.parent < node.id:
        raise ValueError(f"node {node.id!r:.20} must come behind its parent, numbered in the order of the lines")
    if node.step != tree.nodes[node.parent].step + 1:
        raise ValueError(f"step must be {tree.nodes[node.parent].step + 1}, one more than its parent's")


def _reason(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
