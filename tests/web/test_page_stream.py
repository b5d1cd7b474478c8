"""Answers to the page: their events, and how they outlive a connection."""

from __future__ import annotations

import threading

import pytest
from scripted_llm import ScriptedLLM, ScriptedRequest, events_of, service_of, text_of

from llm_decoder.errors import RequestFailedError
from llm_decoder.sampling import SamplingParams
from llm_decoder.serving.calls import Call
from llm_decoder.serving.service import Service
from llm_decoder.web import page_stream
from llm_decoder.web.page_events import PageEvents
from llm_decoder.web.page_stream import PageStream, PageStreams, Reader

MESSAGES = [{"role": "user", "content": "hi"}]


def begin(resume_s: float = 60.0, before: str = "", template: str = "") -> tuple[PageStream, ScriptedRequest]:
    llm = ScriptedLLM(template=template)
    return begin_on(service_of(llm), resume_s, before), llm.next_request()


def begin_on(service: Service, resume_s: float = 60.0, before: str = "") -> PageStream:
    events = PageEvents("s-1", "m", 100, service.llm.answer_parser(), before)
    call = service.run(Call([MESSAGES], [SamplingParams()], streamed=events))
    return PageStream("s-1", call, events, resume_s)


def read(reader: Reader, until: bytes = b"[DONE]") -> bytes:
    """What comes until it holds `until`, or the reader is over."""
    woken = threading.Event()
    reader.on_items(woken.set)
    raw = b""
    while until not in raw and not reader.is_over:
        woken.clear()
        new = reader.events()
        raw += new
        if not new and not reader.is_over:
            assert woken.wait(10)
    return raw


def test_an_answer_has_a_start_its_text_its_blocks_and_an_end() -> None:
    stream, request = begin()
    request.say("one\n", "\nt", "wo")
    request.end("length")
    events = events_of(read(stream.read()))
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    assert [event.name for event in events] == ["start", *["message"] * 3, "block", "block", "end", "message"]
    assert events[0].data == {"stream": "s-1", "model": "m", "max_model_len": 100}
    assert text_of(events) == "one\n\ntwo"
    assert [event.data for event in events if event.name == "block"] == [
        {"index": 0, "html": "<p>one</p>\n", "until": 5},
        {"index": 1, "html": "<p>two</p>\n", "until": 8},
    ]
    assert events[-2].data == {
        "finish_reason": "length",
        "usage": {
            "prompt_tokens": 7,
            "completion_tokens": 3,
            "total_tokens": 10,
            "prompt_tokens_details": {"cached_tokens": 3},
        },
        "tokens_per_s": 12.5,
        "time_to_first_token_s": 0.25,
        "context": {"used": 10, "max": 100},
        "dropped_messages": 0,
    }


def test_a_block_comes_when_it_is_finished_and_not_at_the_end() -> None:
    stream, request = begin()
    reader = stream.read()
    request.say("# title\n", "text")
    assert b"<h1>title</h1>" in read(reader, until=b'text"}')
    request.end()


def test_blocks_count_characters_beyond_the_first_plane_once() -> None:
    stream, request = begin()
    request.say("😀\n\n", "a")
    request.end()
    blocks = [event.data["until"] for event in events_of(read(stream.read())) if event.name == "block"]
    assert blocks == [3, 4]


def test_an_answer_that_goes_on_has_the_blocks_of_the_whole_message() -> None:
    stream, request = begin(before="```py\nx =")
    request.say(" 1\n```\n")
    request.end()
    events = events_of(read(stream.read()))
    assert text_of(events) == " 1\n```\n"
    [block] = [event.data for event in events if event.name == "block"]
    assert block["until"] == len("```py\nx = 1\n```\n")
    assert block["html"].count("<pre") == 1


def test_reasoning_comes_beside_the_answer_and_is_no_block() -> None:
    stream, request = begin(template="<think></think>")
    request.say("<thi", "nk>why", " **not**</think>", "\n\nso")
    request.end()
    events = events_of(read(stream.read()))
    assert "".join(event.data["text"] for event in events if event.name == "reasoning") == "why **not**"
    assert text_of(events) == "so"
    assert [event.data["html"] for event in events if event.name == "block"] == ["<p>so</p>\n"]


def test_what_an_answer_fails_with_is_its_last_event() -> None:
    stream, request = begin()
    request.say("half")
    request.fail(RequestFailedError("/secret/path"))
    events = events_of(read(stream.read()))
    assert [event.name for event in events[-3:]] == ["block", "error", "message"]
    assert events[-2].data["error"]["type"] == "server_error"
    assert "secret" not in str(events)


def test_a_reader_that_comes_back_gets_what_it_has_not_seen() -> None:
    stream, request = begin()
    reader = stream.read()
    request.say("a", "b")
    seen = events_of(read(reader, until=b'"b"'))
    reader.cancel()
    request.say("c", "d")
    request.end()
    rest = events_of(read(stream.read(after=seen[-1].id)))
    assert text_of(seen) + text_of(rest) == "abcd"
    assert rest[0].id == seen[-1].id + 1


def test_a_reader_may_begin_again_or_ask_for_more_than_there_is() -> None:
    stream, request = begin()
    request.say("abc")
    request.end()
    assert text_of(events_of(read(stream.read()))) == "abc"
    assert text_of(events_of(read(stream.read()))) == "abc"
    assert read(stream.read(after=10**6)) == b""


def test_the_second_reader_takes_the_stream_over() -> None:
    stream, request = begin()
    first = stream.read()
    read(first, until=b"start")
    second = stream.read()
    request.say("x")
    request.end()
    assert first.events() == b""
    assert first.is_over
    first.cancel()  # what its server does then: the second one must not suffer
    assert text_of(events_of(read(second))) == "x"
    assert not request.is_cancelled.is_set()


def test_an_answer_that_nobody_reads_is_cancelled_after_a_while() -> None:
    stream, request = begin(resume_s=0.05)
    reader = stream.read()
    request.say("x")
    read(reader, until=b'"x"')
    reader.cancel()
    assert request.is_cancelled.wait(10)


def test_an_answer_that_was_never_read_is_cancelled_too() -> None:
    _, request = begin(resume_s=0.05)
    assert request.is_cancelled.wait(10)


def test_an_answer_with_a_reader_is_not_cancelled() -> None:
    stream, request = begin(resume_s=0.05)
    reader = stream.read()
    assert not request.is_cancelled.wait(0.3)
    reader.cancel()
    assert request.is_cancelled.wait(10)


def test_stop_ends_an_answer_where_it_is() -> None:
    stream, request = begin()
    request.say("so far")
    stream.stop()
    events = events_of(read(stream.read()))
    assert text_of(events) == "so far"
    assert events[-2].data["finish_reason"] == "abort"


def test_streams_that_are_over_are_forgotten_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(page_stream.time, "monotonic", lambda: clock[0])
    streams = PageStreams()
    stream, request = begin(resume_s=15.0)
    streams.add(stream)
    reader = stream.read()
    request.end()
    read(reader)
    clock[0] = 14.0
    assert streams.get(stream.id) is stream
    clock[0] = 16.0
    assert streams.get(stream.id) is None


def test_no_more_finished_streams_are_kept_than_there_is_room_for() -> None:
    streams = PageStreams(max_finished=2)
    for number in range(5):
        stream, request = begin()
        stream.id = f"s-{number}"
        streams.add(stream)
        request.end()
        read(stream.read())
    assert [streams.get(f"s-{number}") is not None for number in range(5)] == [False, False, False, True, True]


def test_the_ids_of_streams_cannot_be_guessed() -> None:
    ids = {PageStreams.new_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(len(stream_id) >= 22 for stream_id in ids)


def test_closing_the_server_ends_its_streams() -> None:
    service = service_of(ScriptedLLM())
    stream = begin_on(service)
    service.close(0)
    assert events_of(read(stream.read()))[-2].data["finish_reason"] == "abort"


def test_an_answer_that_cannot_be_shown_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, request = begin()
    monkeypatch.setattr(PageEvents, "chunks", lambda *_: 1 / 0)
    request.say("x")
    events = events_of(read(stream.read()))
    assert events[-2].data["error"]["type"] == "server_error"
    assert request.is_cancelled.is_set()
