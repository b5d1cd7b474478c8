"""chat: a conversation from a pipe, its slash commands, and what Ctrl-C does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from cli_fakes import FakeLLM, Program
from fakes import ByteTokenizer, make_engine

from llm_decoder.answers import Part
from llm_decoder.cli._conversation import Conversation, obey
from llm_decoder.cli.chat import Talk
from llm_decoder.errors import EngineClosedError, InvalidRequestError, RequestFailedError
from llm_decoder.llm import LLM
from llm_decoder.sampling import SamplingParams
from llm_decoder.search.params import SearchParams
from llm_decoder.search.run_file import read_runs


def asked_messages(llm: FakeLLM) -> list[Any]:
    return [prompt for prompt, _ in llm.asked]


def test_every_line_of_a_pipe_is_a_message_and_the_conversation_grows(cli: Program) -> None:
    ran = cli("chat", stdin="Hello\n\nAgain\n")
    assert (ran.code, ran.out) == (0, "You said 1 messages: Hello.\nYou said 3 messages: Again.\n")
    assert asked_messages(cli.llm)[1] == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "You said 1 messages: Hello."},
        {"role": "user", "content": "Again"},
    ]


def test_the_embedded_model_is_announced_as_a_demo_and_another_one_is_not(cli: Program) -> None:
    ran = cli("chat", stdin="")
    assert "demo" in ran.err
    assert "llm-decoder chat --model" in ran.err
    assert cli("chat", "--model", "some/model", stdin="").err == ""


def test_the_system_message_goes_in_front_and_can_be_changed(cli: Program) -> None:
    cli("chat", "--system", "Be brief.", stdin="Hello\n/system Be long.\nHello\n/system\nHello\n")
    firsts = [messages[0] for messages in asked_messages(cli.llm)]
    assert firsts[0] == {"role": "system", "content": "Be brief."}
    assert firsts[1] == {"role": "system", "content": "Be long."}
    assert firsts[2]["role"] == "user"


def test_system_of_the_command_line_is_the_conversation_s_and_not_the_template_s(cli: Program) -> None:
    cli("chat", "--system", "Be brief.", stdin="Hello\n")
    assert cli.opened[0].system is None


def test_with_json_every_answer_is_an_object_on_a_line(cli: Program) -> None:
    ran = cli("chat", "--json", stdin="Hello\n/set temperature 0.5\nAgain\n")
    answers = [json.loads(line) for line in ran.out.splitlines()]
    assert [answer["outputs"][0]["text"] for answer in answers] == [
        "You said 1 messages: Hello.",
        "You said 3 messages: Again.",
    ]
    assert answers[0]["outputs"][0]["finish_reason"] == "stop"


def test_with_json_an_answer_that_was_stopped_is_an_object_too(capsys: pytest.CaptureFixture[str]) -> None:
    llm = FakeLLM(interrupt_once_at(2))
    talk = Talk(Conversation(llm, SamplingParams()), as_json=True)  # type: ignore[arg-type]
    assert talk.run(lines("Hello")) == 0
    (answer,) = json.loads(capsys.readouterr().out)["outputs"]
    assert answer == {"index": 0, "text": "You said", "finish_reason": "abort"}


def test_a_line_that_is_no_utf8_is_told_and_the_conversation_goes_on(cli: Program) -> None:
    ran = cli("chat", stdin=b"\xff\nHello\n")
    assert (ran.code, ran.out) == (1, "You said 1 messages: Hello.\n")
    assert "[stdin] need UTF-8 text, got the byte 0xff" in ran.err


def test_clear_forgets_what_was_said(cli: Program) -> None:
    cli("chat", stdin="Hello\n/clear\nAgain\n")
    assert asked_messages(cli.llm)[1] == [{"role": "user", "content": "Again"}]


def test_regen_asks_the_same_again_with_another_seed(cli: Program) -> None:
    ran = cli("chat", "--seed", "5", stdin="Hello\n/regen\nMore\n")
    messages = asked_messages(cli.llm)
    assert messages[0] == messages[1] == [{"role": "user", "content": "Hello"}]
    assert len(messages[2]) == 3
    seeds = [params.seed for _, params in cli.llm.asked]
    assert seeds[0] == 5
    assert seeds[1] != 5
    assert ran.out.count("You said 1 messages: Hello.") == 2


def test_regen_before_anything_was_said_is_an_error(cli: Program) -> None:
    ran = cli("chat", stdin="/regen\n")
    assert ran.code == 1
    assert "there is no answer yet" in ran.err


def test_set_changes_the_sampling_of_the_answers_to_come(cli: Program) -> None:
    ran = cli("chat", stdin='/set temperature 0.25\n/set stop ["a", "b"]\nHello\n/set max-tokens null\n/set\nHello\n')
    first, second = (params for _, params in cli.llm.asked)
    assert (first.temperature, first.stop) == (0.25, ("a", "b"))
    assert second.max_tokens is None
    assert "temperature 0.25" in ran.err


@pytest.mark.parametrize("line", ["/set temperature -1", "/set warmth 3", "/set temperature", "/frobnicate", "/read"])
def test_a_bad_command_is_told_and_the_conversation_goes_on(cli: Program, line: str) -> None:
    ran = cli("chat", stdin=f"{line}\nHello\n")
    assert ran.err.count("error: ") == 1
    assert ran.out == "You said 1 messages: Hello.\n"
    assert ran.code == 1


def test_read_puts_a_file_in_front_of_the_next_message(cli: Program, tmp_path: Path) -> None:
    path = tmp_path / "poem.txt"
    path.write_text("Roses are red\n", encoding="utf-8")
    cli("chat", stdin=f"/read {path}\nExplain.\nAnd now?\n")
    first, second = asked_messages(cli.llm)
    assert first[0]["content"] == "Roses are red\n\nExplain."
    assert second[-1]["content"] == "And now?"


@pytest.mark.parametrize("content", [b"\xff\xfe\xfa", None])
def test_a_file_that_cannot_be_read_is_told(cli: Program, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "file"
    if content is not None:
        path.write_bytes(content)
    ran = cli("chat", stdin=f"/read {path}\nHello\n")
    assert ran.err.count("error: ") == 1
    assert asked_messages(cli.llm)[0][0]["content"] == "Hello"


def test_save_writes_a_line_that_batch_reads_and_overwrites_no_stranger(cli: Program, tmp_path: Path) -> None:
    path = tmp_path / "talk.jsonl"
    cli("chat", "--system", "Be brief.", stdin=f"Hello\n/save {path}\n/save {path}\n")
    messages = json.loads(path.read_text(encoding="utf-8"))["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert cli("batch", str(path)).code == 0

    before = path.read_bytes()
    ran = cli("chat", stdin=f"Hello\n/save {path}\n")
    assert "exists already" in ran.err
    assert path.read_bytes() == before


def test_exit_leaves_and_help_lists_the_commands(cli: Program) -> None:
    ran = cli("chat", stdin="/help\n/exit\nHello\n")
    assert (ran.code, ran.out) == (0, "")
    for command in ("/exit", "/clear", "/regen", "/read", "/set", "/save", "/system", "/help"):
        assert command in ran.err


def test_a_message_that_cannot_be_answered_is_taken_back(cli: Program) -> None:
    class Refusing(FakeLLM):
        def stream(self, prompt: Any, params: SamplingParams) -> Any:
            if prompt[-1]["content"] == "bad":
                raise InvalidRequestError("[messages] too long")
            return super().stream(prompt, params)

    cli.llm = Refusing()
    ran = cli("chat", stdin="Hello\nbad\nAgain\n")
    assert ran.code == 1
    assert [message["content"] for message in asked_messages(cli.llm)[-1]] == [
        "Hello",
        "You said 1 messages: Hello.",
        "Again",
    ]


def test_a_conversation_that_outgrew_the_context_says_so(cli: Program) -> None:
    cli.llm = FakeLLM(dropped_messages=4)
    ran = cli("chat", stdin="Hello\n")
    assert ran.err.count("outgrown the context; its oldest 4 messages are dropped") == 1


def test_several_answers_at_a_time_are_a_usage_error(cli: Program) -> None:
    assert cli("chat", "--n", "2").code == 2


class Reasoning(FakeLLM):
    """Reasons in its first two words."""

    def parts(self, word: str) -> list[Part]:
        return [Part("reasoning" if word in ("You", " said") else "content", word)]


def test_reasoning_is_dimmed_at_a_terminal_and_left_out_elsewhere(
    cli: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.llm = Reasoning()
    assert cli("chat", stdin="Hello\n").out == " 1 messages: Hello.\n"
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert cli("chat", stdin="Hello\n").out.startswith(
        "\x1b[2mYou\x1b[22m\x1b[2m said\x1b[22m\x1b[2m\n\n\x1b[22m 1 messages"
    )
    monkeypatch.setenv("NO_COLOR", "1")
    assert cli("chat", stdin="Hello\n").out.startswith("You said\n\n 1 messages")


def test_reasoning_does_not_go_back_into_the_conversation(cli: Program) -> None:
    cli.llm = Reasoning()
    cli("chat", stdin="Hello\nAgain\n")
    assert asked_messages(cli.llm)[1][1] == {"role": "assistant", "content": " 1 messages: Hello."}


def lines(*items: str | type[BaseException]) -> Callable[[], str]:
    """A reader that gives these lines, or raises these exceptions, and then the end of the input."""
    rest = list(items)

    def read() -> str:
        item = rest.pop(0) if rest else EOFError
        if isinstance(item, str):
            return item
        raise item

    return read


def talk_with(llm: FakeLLM) -> Talk:
    return Talk(Conversation(llm, SamplingParams()))  # type: ignore[arg-type]


def interrupt_once_at(event: int) -> Callable[[int], None]:
    state = {"armed": True}

    def before_event(n: int) -> None:
        if n == event and state["armed"]:
            state["armed"] = False
            raise KeyboardInterrupt

    return before_event


def test_ctrl_c_stops_the_answer_and_the_conversation_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    llm = FakeLLM(interrupt_once_at(2))
    talk = talk_with(llm)
    assert talk.run(lines("Hello", "Again")) == 0
    assert llm.n_cancelled == 1
    assert [message["content"] for message in talk.conversation.messages] == [
        "Hello",
        "You said",
        "Again",
        "You said 3 messages: Again.",
    ]
    assert capsys.readouterr().out == "You said\nYou said 3 messages: Again.\n"


def test_a_second_ctrl_c_leaves_with_130() -> None:
    llm = FakeLLM(interrupt_once_at(2))
    assert talk_with(llm).run(lines("Hello", KeyboardInterrupt, "never read")) == 130
    assert len(llm.asked) == 1


def test_two_ctrl_c_at_the_prompt_leave_but_a_message_between_them_does_not() -> None:
    llm = FakeLLM()
    assert talk_with(llm).run(lines(KeyboardInterrupt, "Hello", KeyboardInterrupt, "Again")) == 0
    assert len(llm.asked) == 2
    assert talk_with(llm).run(lines(KeyboardInterrupt, KeyboardInterrupt, "never read")) == 130


def test_a_closed_pipe_ends_the_conversation() -> None:
    def pipe_is_closed(n: int) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        talk_with(FakeLLM(pipe_is_closed)).run(lines("Hello"))


@pytest.mark.parametrize(
    "error", [RequestFailedError("[request 0] failed"), EngineClosedError("[engine] its thread has died")]
)
def test_an_error_in_the_middle_of_an_answer_has_a_line_of_its_own(cli: Program, error: Exception) -> None:
    def fail_at_the_third(n: int) -> None:
        if n == 2:
            raise error

    cli.llm = FakeLLM(fail_at_the_third)
    ran = cli("chat", stdin="Hello\n")
    assert (ran.code, ran.out) == (1, "You said\n")
    assert ran.err.endswith(f"error: {error}\n")


def test_set_leaves_what_was_set_before() -> None:
    conversation = Conversation(FakeLLM(), SamplingParams(seed=3))  # type: ignore[arg-type]
    obey(conversation, "/set top_k 4")
    obey(conversation, "/set --top-p 0.5")
    assert conversation.params == SamplingParams(seed=3, top_k=4, top_p=0.5)


LETTERS = "97,98,99,100,32"
SEARCHED = ("chat", "--max-tokens", "5", "--allowed-token-ids", LETTERS, "--quiet")


@pytest.fixture
def searching(cli: Program, monkeypatch: pytest.MonkeyPatch) -> Iterator[LLM]:
    """A real LLM whose model is made up, for what a search does."""
    llm = LLM.over(make_engine(), ByteTokenizer(), "made-up")  # type: ignore[arg-type]
    with monkeypatch.context() as patched:
        patched.setattr(llm, "close", lambda: None)
        cli.llm = llm  # type: ignore[assignment]
        yield llm
    llm.close()


def best_answer(llm: LLM, messages: Any, **params: Any) -> str:
    allowed = tuple(int(token) for token in LETTERS.split(","))
    (output,) = llm.search([messages], SearchParams(max_tokens=5, allowed_token_ids=allowed, **params))
    return output.outputs[0].text


def test_a_conversation_is_searched_from_one_command_to_the_next(cli: Program, searching: LLM) -> None:
    ran = cli(*SEARCHED, "--temperature", "0", stdin="Hi\n/search 8\nHi\n/search\nHi\n")
    assert ran.code == 0
    first, second, third = ran.out.splitlines()
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": first}]
    messages.append(messages[0])
    assert second == best_answer(searching, messages, width=8)
    assert "Each answer is the best of 8" in ran.err
    assert "not searched any more" in ran.err
    messages += [{"role": "assistant", "content": second}, messages[0]]
    (greedy,) = searching.generate(
        [messages], SamplingParams(max_tokens=5, temperature=0, allowed_token_ids=(97, 98, 99, 100, 32))
    )
    assert third == greedy.outputs[0].text


def test_set_says_how_a_conversation_is_searched(cli: Program, searching: LLM) -> None:
    commands = "/search 6\n/set length-penalty 0\n/set groups 3\n/set diversity_penalty 9\n/set\n/set groups null\nHi\n"
    ran = cli(*SEARCHED, stdin=commands)
    assert ran.code == 0
    assert "width 6, length_penalty 0, groups 3, diversity_penalty 9" in ran.err
    assert "groups is 1." in ran.err
    messages = [{"role": "user", "content": "Hi"}]
    assert ran.out.rstrip("\n") == best_answer(searching, messages, width=6, length_penalty=0, diversity_penalty=9)


@pytest.mark.parametrize(
    "line",
    ["/search 65", "/search few", "/search 0", "/set width 4", "/set scorer likelihood", "/search 2\n/set groups 3"],
)
def test_what_no_search_can_be_is_told_and_changes_nothing(cli: Program, searching: LLM, line: str) -> None:
    ran = cli(*SEARCHED, "--temperature", "0", stdin=f"{line}\n/search\nHi\n")
    assert (ran.code, ran.err.count("error: ")) == (1, 1)
    assert ran.out == cli(*SEARCHED, "--temperature", "0", stdin="Hi\n").out


def test_tree_writes_what_was_looked_at_for_the_last_answer(cli: Program, searching: LLM, tmp_path: Path) -> None:
    runs, page = tmp_path / "runs.jsonl", tmp_path / "tree.html"
    ran = cli(*SEARCHED, stdin=f"/search 4\nHi\n/search 3\nMore\n/tree {runs}\n/tree {runs}\n/tree {page}\n")
    assert (ran.code, ran.err.count("is in ")) == (0, 3)
    (run,), problems = read_runs(runs.read_text().splitlines(), "runs")
    assert not problems
    assert run.header["params"]["width"] == 3
    assert "prompt" not in run.header
    assert [candidate["text"] for candidate in run.candidates] == [ran.out.splitlines()[1]]
    assert len(run.tree) > 5
    assert page.read_text().startswith("<!")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("Hi\n/tree FILE.svg", "came of no search"),
        ("/search 2\n/tree FILE.svg", "came of no search"),
        ("/search 2\nHi\n/clear\n/tree FILE.svg", "came of no search"),
        ("/search 2\nHi\n/search\nHi\n/tree FILE.svg", "came of no search"),
        ("/search 2\nHi\n/tree FILE.gif", "need a file that ends in"),
        ("/search 2\nHi\n/tree no/such/folder/tree.svg", "need a file in a folder that is there"),
        ("/search 2\nHi\n/tree", "need the name of a file"),
        ("/search 2\nHi\n/tree TAKEN", "exists already"),
    ],
)
def test_tree_says_why_it_writes_nothing(cli: Program, searching: LLM, tmp_path: Path, lines: str, said: str) -> None:
    (tmp_path / "taken.svg").write_text("mine")
    lines = lines.replace("FILE", str(tmp_path / "tree")).replace("TAKEN", str(tmp_path / "taken.svg"))
    ran = cli(*SEARCHED, stdin=lines)
    assert (ran.code, ran.err.count("error: ")) == (1, 1)
    assert said in " ".join(ran.err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["taken.svg"]
    assert (tmp_path / "taken.svg").read_text() == "mine"


def test_json_of_a_searched_answer_has_its_scores_and_not_its_tree(cli: Program, searching: LLM) -> None:
    (line,) = cli(*SEARCHED, "--json", stdin="/search 4\nHi\n").out.splitlines()
    answer = json.loads(line)
    assert answer["outputs"][0]["beam_rank"] == 0
    assert "tree" not in answer
