import pytest
from fakes import ByteTokenizer

from llm_decoder.chat import fit_chat
from llm_decoder.errors import ContextLengthExceededError, InvalidRequestError

TOKENIZER = ByteTokenizer()
SYSTEM = {"role": "system", "content": "be brief"}


def say(role, content):
    return {"role": role, "content": content}


def turns(n, size=20):
    return [say(role, f"{i:02d}" + role[0] * size) for i in range(n) for role in ("user", "assistant")]


def text_of(chat):
    return TOKENIZER.decode(chat.token_ids)


def test_a_chat_that_fits_is_left_alone():
    chat = fit_chat(TOKENIZER, [SYSTEM, *turns(2), say("user", "now?")], 1000, 16)
    assert chat.dropped_messages == 0
    assert text_of(chat).startswith("<system>be brief\n<user>00")
    assert text_of(chat).endswith("<user>now?\n<assistant>")


@pytest.mark.parametrize("limit", range(120, 420, 13))
def test_the_oldest_turns_are_dropped_until_prompt_and_answer_fit_and_no_turn_more(limit):
    messages = [SYSTEM, *turns(6), say("user", "now?")]
    chat = fit_chat(TOKENIZER, messages, limit, 16)
    n_dropped = chat.dropped_messages
    assert n_dropped % 2 == 0
    assert len(chat.token_ids) + 16 <= limit
    assert chat.token_ids == TOKENIZER.apply_chat_template([SYSTEM, *messages[1 + n_dropped :]])
    if n_dropped:
        assert len(TOKENIZER.apply_chat_template([SYSTEM, *messages[n_dropped - 1 :]])) + 16 > limit


def test_room_for_the_answer_is_at_most_a_quarter_of_the_context():
    messages = [*turns(3), say("user", "now?")]
    open_ended, huge = (fit_chat(TOKENIZER, messages, 200, max_tokens) for max_tokens in (None, 10_000))
    assert open_ended == huge
    assert 0 < open_ended.dropped_messages < 6
    assert len(open_ended.token_ids) <= 150


def test_messages_of_a_turn_go_together():
    first = [say("user", "x" * 50), say("assistant", "call"), say("tool", "result"), say("assistant", "y" * 50)]
    chat = fit_chat(TOKENIZER, [*first, say("user", "now?")], 120, 16)
    assert chat.dropped_messages == 4
    assert "result" not in text_of(chat)


def test_the_last_turn_stays_even_when_it_leaves_little_room():
    chat = fit_chat(TOKENIZER, [SYSTEM, *turns(2), say("user", "x" * 60)], 110, 100)
    assert chat.dropped_messages == 4
    assert len(chat.token_ids) < 110


def test_a_last_turn_that_does_not_fit_is_an_error_with_the_counts():
    with pytest.raises(ContextLengthExceededError, match=r"n_ctx = 64\).*has 114 ") as caught:
        fit_chat(TOKENIZER, [*turns(2), say("user", "x" * 95)], 64, 16)
    assert (caught.value.param, caught.value.code) == ("messages", "context_length_exceeded")


@pytest.mark.parametrize("messages", [[], "hello", None, {"role": "user"}, [1], [{"content": "x"}], [{"role": 1}]])
def test_messages_of_another_form_are_refused(messages):
    with pytest.raises(InvalidRequestError, match="messages"):
        fit_chat(TOKENIZER, messages, 100, 16)
