"""generate and stream: text to standard output, everything else to standard error."""

from __future__ import annotations

import json
import sys

import pytest
from cli_fakes import FakeLLM, Program

from llm_decoder.cli._stream import follow
from llm_decoder.cli.main import main
from llm_decoder.outputs import StreamEvent
from llm_decoder.sampling import SamplingParams


@pytest.mark.parametrize("arguments", [("Hello",), ("--prompt", "Hello"), ("-p", "Hello")])
def test_generate_writes_the_text_to_standard_output_and_the_speed_to_standard_error(
    cli: Program, arguments: tuple[str, ...]
) -> None:
    ran = cli("generate", *arguments)
    assert (ran.code, ran.out) == (0, "You said Hello.\n")
    assert "4 tokens in 1.00 s, 8.0 tokens/s" in ran.err
    assert "prompt 3 tokens" in ran.err


def test_the_closing_line_tells_how_many_guessed_tokens_were_right(cli: Program) -> None:
    assert "drafted" not in cli("generate", "Hello").err
    cli.llm.n_drafted_tokens = 8
    assert "| 4 of 8 drafted tokens accepted |" in cli("generate", "Hello").err


def test_generate_reads_standard_input_for_a_dash(cli: Program) -> None:
    ran = cli("generate", "-", stdin="\ufeffHello,\nworld\n")
    assert ran.out == "You said Hello,\nworld.\n"


def test_generate_echoes_the_prompt_when_asked(cli: Program) -> None:
    assert cli("generate", "Hello", "--echo").out == "HelloYou said Hello.\n"


def test_generate_quiet_says_nothing_on_standard_error(cli: Program) -> None:
    assert cli("generate", "Hello", "--quiet").err == ""


def test_generate_json_is_one_line_with_the_request_output(cli: Program) -> None:
    ran = cli("generate", "Hello", "--json", "--n", "2")
    output = json.loads(ran.out)
    assert ran.out.count("\n") == 1
    assert [answer["text"] for answer in output["outputs"]] == ["You said Hello."] * 2
    assert output["outputs"][0]["finish_reason"] == "stop"
    assert output["metrics"]["n_generated_tokens"] == 8


def test_generate_separates_several_answers(cli: Program) -> None:
    ran = cli("generate", "Hello", "--n", "2")
    assert ran.out == "You said Hello.\n---\nYou said Hello.\n"


@pytest.mark.parametrize("arguments", [(), ("Hello", "--prompt", "Hello")])
def test_generate_needs_exactly_one_prompt(cli: Program, arguments: tuple[str, ...]) -> None:
    ran = cli("generate", *arguments)
    assert (ran.code, ran.out) == (2, "")
    assert "give one prompt" in ran.err
    assert not cli.opened


def test_an_error_of_the_engine_is_one_line_and_exit_code_1(cli: Program) -> None:
    ran = cli("generate", "refuse me")
    assert ran.code == 1
    assert ran.err == "error: [prompt] needs at least one token, got none\n"


def test_debug_shows_where_an_error_came_from(cli: Program) -> None:
    with pytest.raises(ValueError, match="needs at least one token"):
        cli("generate", "refuse me", "--debug")


def test_ctrl_c_cancels_the_request_closes_the_engine_and_exits_with_130(cli: Program) -> None:
    def interrupt(n: int) -> None:
        if n == 2:
            raise KeyboardInterrupt

    cli.llm = FakeLLM(interrupt)
    ran = cli("generate", "Hello")
    assert (ran.code, ran.out) == (130, "You said\n")
    assert cli.llm.n_cancelled == 1
    assert cli.llm.is_closed
    assert "Traceback" not in ran.err


def test_whoever_stops_following_a_stream_cancels_it() -> None:
    def stop(event: StreamEvent) -> None:
        raise KeyboardInterrupt

    llm = FakeLLM()
    events = llm.stream("Hello", SamplingParams())
    with pytest.raises(KeyboardInterrupt):
        follow(events, stop)  # type: ignore[arg-type]
    assert llm.n_cancelled == 1


def test_control_characters_reach_a_file_but_no_terminal(cli: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli("generate", "\x1b[2J!").out == "You said \x1b[2J!.\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert cli("generate", "\x1b[2J!").out == "You said [2J!.\n"


def test_stream_writes_prompt_and_text(cli: Program) -> None:
    assert cli("stream", "Hello").out == "HelloYou said Hello.\n"
    assert cli("stream", "Hello", "--no-echo").out == "You said Hello.\n"


def test_stream_without_a_prompt_takes_a_packaged_beginning(cli: Program) -> None:
    ran = cli("stream", "--seed", "3")
    assert ran.code == 0
    prompt, _ = cli.llm.asked[0]
    assert isinstance(prompt, str)
    assert len(prompt) > 10
    assert ran.out.startswith(prompt)
    assert cli("stream", "--seed", "3").out == ran.out


def test_stream_json_is_an_event_a_line_and_the_texts_join(cli: Program) -> None:
    ran = cli("stream", "Hello", "--json")
    events = [json.loads(line) for line in ran.out.splitlines()]
    assert "".join(event["text"] for event in events) == "You said Hello."
    assert [event.get("finish_reason") for event in events] == [None, None, None, "stop"]
    assert events[-1]["output"]["outputs"][0]["text"] == "You said Hello."


def test_stream_of_several_texts_needs_json(cli: Program) -> None:
    ran = cli("stream", "Hello", "--n", "2")
    assert (ran.code, cli.opened) == (2, [])
    assert "--n" in ran.err


@pytest.mark.parametrize("verb", ["generate", "stream"])
def test_standard_input_that_is_no_utf8_says_so(cli: Program, verb: str) -> None:
    ran = cli(verb, "-", stdin=b"Hello\xff")
    assert (ran.code, ran.out, cli.llm.asked) == (1, "", [])
    assert "error: [stdin] need UTF-8 text, got the byte 0xff after 5 bytes" in ran.err


def test_line_ends_of_other_systems_are_read(cli: Program) -> None:
    assert cli("generate", "-", stdin=b"Hello,\r\nworld\r\n").out == "You said Hello,\nworld.\n"


@pytest.mark.parametrize("arguments", [("generate", "-"), ("stream", "-"), ("chat",), ("batch", "-")])
def test_a_closed_standard_input_is_an_error_of_one_line(
    cli: Program, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert main(list(arguments)) == 1
    assert "error: [stdin] need an open standard input, got a closed one" in capsys.readouterr().err
