"""batch: every line is answered once, whatever happens in between."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from cli_fakes import FakeLLM, Program

from llm_decoder.cli._batch_lines import Line
from llm_decoder.cli._journal import Journal, fingerprint
from llm_decoder.cli._output import to_json
from llm_decoder.cli.batch import answers
from llm_decoder.errors import ConfigError, EngineClosedError, RequestFailedError
from llm_decoder.sampling import SamplingParams


def write_lines(path: Path, *lines: Any) -> Path:
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return path


def read_records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "prompts.jsonl", *({"id": f"line-{n}", "prompt": f"Prompt {n}"} for n in range(10)))


def test_prompts_messages_and_token_ids_are_answered(cli: Program, tmp_path: Path) -> None:
    source = write_lines(
        tmp_path / "in.jsonl",
        {"id": 7, "prompt": "Hello"},
        {"id": "b", "messages": [{"role": "user", "content": "Hi"}]},
        {"token_ids": [5, 6]},
    )
    ran = cli("batch", str(source), "--concurrency", "1")
    records = [json.loads(line) for line in ran.out.splitlines()]
    assert ran.code == 0
    assert [record["text"] for record in records] == ["You said Hello.", "You said 1 messages: Hi.", "You said 5 6."]
    assert [record.get("id") for record in records] == [7, "b", None]
    assert [record["index"] for record in records] == [0, 1, 2]
    assert records[0]["finish_reason"] == "stop"
    assert records[0]["usage"] == {"prompt_tokens": 3, "completion_tokens": 4}
    assert "3 lines | 12 tokens" in ran.err


def test_without_an_input_the_packaged_samples_are_answered(cli: Program) -> None:
    ran = cli("batch")
    records = [json.loads(line) for line in ran.out.splitlines()]
    assert ran.code == 0
    assert len(records) >= 5
    assert all(record["text"] for record in records)


def test_a_line_s_own_fields_go_over_the_flags(cli: Program, tmp_path: Path) -> None:
    source = write_lines(
        tmp_path / "in.jsonl", {"prompt": "A", "max_tokens": 2, "stop": "x"}, {"prompt": "B", "seed": 3}
    )
    cli("batch", str(source), "--concurrency", "1", "--max-tokens", "9", "--temperature", "0.5")
    (_, first), (_, second) = cli.llm.asked
    assert (first.max_tokens, first.stop, first.temperature) == (2, ("x",), 0.5)
    assert (second.max_tokens, second.seed) == (9, 3)


def test_a_line_may_say_what_a_request_may(cli: Program, tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hi"}]
    tools = [{"type": "function", "function": {"name": "now"}}]
    source = write_lines(
        tmp_path / "in.jsonl",
        {"prompt": "A", "priority": -5, "cache_salt": "mine"},
        {"token_ids": [1], "priority": 7},
        {"messages": chat, "priority": 2, "tools": tools, "tool_choice": "none", "parallel_tool_calls": False},
        {"messages": chat, "continue_final_message": True, "chat_template_kwargs": {"enable_thinking": False}},
    )
    assert cli("batch", str(source), "--concurrency", "1").code == 0
    assert cli.llm.asked[0][1].cache_salt == "mine"
    assert cli.llm.options == [
        {"priority": -5},
        {"priority": 7},
        {"priority": 2, "tools": tools, "tool_choice": "none", "parallel_tool_calls": False},
        {"continue_final_message": True, "enable_thinking": False},
    ]


def test_a_line_without_a_seed_gets_one_from_its_index_so_that_a_restart_draws_the_same(
    cli: Program, prompts: Path, tmp_path: Path
) -> None:
    cli("batch", str(prompts))
    whole = {prompt: params.seed for prompt, params in cli.llm.asked if isinstance(prompt, str)}
    assert len(set(whole.values())) == 10

    target = tmp_path / "out.jsonl"
    cli("batch", str(prompts), "-o", str(target))
    kept = target.read_bytes().splitlines(keepends=True)[:4]
    target.write_bytes(b"".join(kept))
    cli.llm = FakeLLM()
    cli("batch", str(prompts), "-o", str(target))
    assert len(cli.llm.asked) == 6
    assert all(whole[prompt] == params.seed for prompt, params in cli.llm.asked if isinstance(prompt, str))


BAD_LINES = [
    "{",
    "[1, 2]",
    '"text"',
    {"id": "x"},
    {"id": "x", "prompt": "a", "messages": []},
    {"prompt": 5},
    {"token_ids": "1 2"},
    {"prompt": "a", "temprature": 0.5},
    {"prompt": "a", "temperature": -1},
    {"prompt": "a", "n": 1000000000},
    {"prompt": ""},
    {"prompt": "a", "tools": []},
    {"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": {"params": 1}},
    {"messages": [{"role": "user", "content": "a"}], "chat_template_kwargs": [1]},
    "[" * 100_000,
]


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_line_gets_an_error_record_and_the_others_go_on(cli: Program, tmp_path: Path, line: Any) -> None:
    source = write_lines(tmp_path / "in.jsonl", {"prompt": "A"}, line, {"prompt": "B"})
    ran = cli("batch", str(source), "--concurrency", "1")
    records = [json.loads(text) for text in ran.out.splitlines()]
    assert ran.code == 1
    assert [record["index"] for record in records] == [0, 1, 2]
    assert records[1]["error"]["message"]
    assert "text" not in records[1]
    assert [records[0]["text"], records[2]["text"]] == ["You said A.", "You said B."]
    assert "1 failed" in ran.err


def test_an_error_record_names_the_field_and_keeps_the_id(cli: Program, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", {"id": "x", "prompt": "a", "top_p": 7})
    record = json.loads(cli("batch", str(source)).out)
    assert record["id"] == "x"
    assert record["error"]["param"] == "top_p"
    assert record["error"]["type"] == "InvalidRequestError"


def test_a_request_that_fails_while_it_runs_fails_alone(cli: Program, prompts: Path) -> None:
    class Failing(FakeLLM):
        def generate(self, prompts: Any, params: SamplingParams) -> Any:
            if prompts == "Prompt 3":
                raise RequestFailedError("[engine] non-finite logits")
            return super().generate(prompts, params)

    cli.llm = Failing()
    ran = cli("batch", str(prompts))
    records = {record["index"]: record for record in map(json.loads, ran.out.splitlines())}
    assert ran.code == 1
    assert [index for index, record in records.items() if "error" in record] == [3]


def test_bytes_that_are_no_text_spoil_only_their_line(cli: Program) -> None:
    ran = cli("batch", "-", stdin=b'\xef\xbb\xbf{"prompt": "A"}\n\n{"prompt": "\xff"}\n{"prompt": "B"}')
    records = [json.loads(text) for text in ran.out.splitlines()]
    assert {record["index"] for record in records} == {0, 2, 3}
    assert [record["index"] for record in records if "error" in record] == [2]


def test_several_answers_to_a_line_are_all_there(cli: Program, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", {"prompt": "A", "n": 3})
    record = json.loads(cli("batch", str(source)).out)
    assert len(record["outputs"]) == 3


def test_the_output_file_has_every_line_once_after_any_number_of_restarts(
    cli: Program, prompts: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out.jsonl"
    assert cli("batch", str(prompts), "--output", str(target)).code == 0
    whole = target.read_bytes()
    cuts = [0, 1, len(whole) // 3, len(whole) // 2, len(whole) - 1, len(whole)]
    for cut in cuts:
        target.write_bytes(whole[:cut])
        assert cli("batch", str(prompts), "--output", str(target)).code == 0
        assert sorted(record["index"] for record in read_records(target)) == list(range(10))
        assert sorted(target.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_lines_that_are_done_are_not_asked_again(cli: Program, prompts: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    cli("batch", str(prompts), "-o", str(target))
    cli.llm, cli.opened[:] = FakeLLM(), []
    ran = cli("batch", str(prompts), "-o", str(target))
    assert (ran.code, cli.llm.asked, cli.opened) == (0, [], [])
    assert "10 of 10 lines were done before" in ran.err


def test_a_failed_line_still_counts_after_a_restart(cli: Program, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", {"prompt": "A"}, "{")
    target = tmp_path / "out.jsonl"
    assert cli("batch", str(source), "-o", str(target)).code == 1
    assert cli("batch", str(source), "-o", str(target)).code == 1


def test_an_output_file_of_another_input_is_refused_and_left_alone(cli: Program, prompts: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    cli("batch", str(prompts), "-o", str(target))
    before = target.read_bytes()
    other = write_lines(tmp_path / "other.jsonl", *({"prompt": f"Other {n}"} for n in range(12)))
    ran = cli("batch", str(other), "-o", str(target))
    assert ran.code == 1
    assert "another line 1 of the input" in ran.err
    assert target.read_bytes() == before


def test_a_file_that_is_no_output_of_a_batch_is_refused_and_left_alone(cli: Program, prompts: Path) -> None:
    before = prompts.read_bytes()
    ran = cli("batch", str(prompts), "-o", str(prompts))
    assert ran.code == 1
    assert "is no record of a batch" in ran.err
    assert prompts.read_bytes() == before


def test_a_missing_input_is_an_error_and_makes_no_output(cli: Program, tmp_path: Path) -> None:
    ran = cli("batch", str(tmp_path / "none.jsonl"), "-o", str(tmp_path / "out.jsonl"))
    assert ran.code == 1
    assert "none.jsonl" in ran.err
    assert not (tmp_path / "out.jsonl").exists()


def test_with_json_the_counts_of_a_batch_to_a_file_are_one_object_on_standard_output(
    cli: Program, prompts: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out.jsonl"
    summary = json.loads(cli("batch", str(prompts), "-o", str(target), "--json").out)
    names = ("output", "n_lines", "n_lines_before", "n_failed", "n_tokens")
    assert [summary[name] for name in names] == [str(target), 10, 0, 0, 40]
    summary = json.loads(cli("batch", str(prompts), "-o", str(target), "--json").out)
    assert [summary[name] for name in names] == [str(target), 0, 10, 0, 0]


def test_with_json_a_batch_to_standard_output_gives_the_answers_and_nothing_else(cli: Program, prompts: Path) -> None:
    records = [json.loads(line) for line in cli("batch", str(prompts), "--json").out.splitlines()]
    assert sorted(record["index"] for record in records) == list(range(10))


def test_a_write_that_fails_names_the_output(cli: Program, prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def write(self, data: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    target = prompts.with_name("out.jsonl")
    append = Journal.append

    def append_to_full(self: Journal, record: Any) -> None:
        self._file.close()
        self._file = Full()  # type: ignore[assignment]
        append(self, record)

    monkeypatch.setattr(Journal, "append", append_to_full)
    monkeypatch.setattr(Journal, "close", lambda self: None)
    ran = cli("batch", str(prompts), "-o", str(target))
    assert ran.code == 1
    assert f"error: [{target}] No space left on device" in ran.err


def test_two_batches_never_write_the_same_file(tmp_path: Path) -> None:
    first = Journal(tmp_path / "out.jsonl")
    with pytest.raises(ConfigError, match="another process writes"):
        Journal(tmp_path / "out.jsonl")
    first.close()
    Journal(tmp_path / "out.jsonl").close()


def test_a_torn_last_line_is_cut_and_the_whole_ones_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    whole = to_json({"index": 0, "input": fingerprint("a"), "text": "ä"}).encode() + b"\n"
    path.write_bytes(whole + whole.replace(b"0", b"1")[:-1])
    journal = Journal(path)
    assert set(journal.done) == {0}
    journal.append({"index": 1, "input": fingerprint("b"), "text": "second"})
    journal.close()
    assert [record["index"] for record in read_records(path)] == [0, 1]


def test_as_many_lines_as_allowed_are_in_flight_together(cli: Program, prompts: Path) -> None:
    barrier = threading.Barrier(5, timeout=30)
    cli.llm = FakeLLM(lambda n: barrier.wait() and None)
    assert cli("batch", str(prompts), "--concurrency", "5").code == 0
    assert len(cli.llm.asked) == 10


def test_ctrl_c_keeps_what_is_done_and_says_how_to_go_on(
    cli: Program, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "out.jsonl"
    append = Journal.append
    n_written = 0

    def append_then_interrupt(self: Journal, record: Any) -> None:
        nonlocal n_written
        append(self, record)
        n_written += 1
        if n_written == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", append_then_interrupt)
        ran = cli("batch", str(prompts), "-o", str(target), "--concurrency", "2")
    assert ran.code == 130
    assert "goes on where" in ran.err
    assert cli.llm.is_closed
    assert len(read_records(target)) == 3

    assert cli("batch", str(prompts), "-o", str(target)).code == 0
    assert sorted(record["index"] for record in read_records(target)) == list(range(10))


def test_an_interrupted_batch_does_not_wait_for_what_is_in_flight() -> None:
    class Slow(FakeLLM):
        closed = threading.Event()
        waited_in_vain = False

        def generate(self, prompts: Any, params: SamplingParams) -> Any:
            if prompts == "slow":
                self.waited_in_vain = not self.closed.wait(10)
                raise EngineClosedError("[engine] it was closed")
            return super().generate(prompts, params)

        def close(self) -> None:
            self.closed.set()

    llm = Slow()
    lines = [Line(0, '{"prompt": "quick"}'), Line(1, '{"prompt": "slow"}')]
    running = answers(llm, lines, SamplingParams(), SamplingParams(), 2)  # type: ignore[arg-type]
    record, _ = next(running)
    running.close()
    assert record["index"] == 0
    assert not llm.waited_in_vain


def test_numbers_that_json_lacks_become_null_and_lone_surrogates_stay_escaped() -> None:
    text = to_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": "\ud800"})
    assert json.loads(text) == {"a": None, "b": [None, 1.5], "c": "\ud800"}
    assert text.isascii()


def test_an_input_that_is_not_there_is_named_first(cli: Program, tmp_path: Path) -> None:
    ran = cli("batch", str(tmp_path / "nothing.jsonl"))
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == f"error: [{tmp_path / 'nothing.jsonl'}] No such file or directory\n"


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_an_output_that_cannot_be_read_back_is_refused_before_it_is_opened(
    cli: Program, prompts: Path, tmp_path: Path, kind: str
) -> None:
    output = tmp_path / "pipe" if kind == "pipe" else Path("/dev/null")
    if kind == "pipe":
        os.mkfifo(output)
    ran = cli("batch", str(prompts), "-o", str(output))
    assert (ran.code, ran.out) == (1, "")
    assert "need a regular file for --output" in ran.err


def test_the_lines_of_a_pipe_that_has_a_name_are_all_answered(cli: Program, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=write_lines, args=(pipe, {"prompt": "a"}, {"prompt": "b"}), daemon=True)
    writer.start()
    ran = cli("batch", str(pipe))
    writer.join()
    assert {json.loads(line)["index"] for line in ran.out.splitlines()} == {0, 1}
