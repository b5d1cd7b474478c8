"""What goes wrong between the page and its server, and how it goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest
from reader import Reader, expect
from scripted_site import Site, open_llm

WORDS = " ".join(str(i) for i in range(150))


@pytest.fixture(scope="module")
def locked_site() -> Iterator[Site]:
    site = Site(api_keys=("sesame",))
    yield site
    site.close()


def test_an_answer_goes_on_after_the_connection_broke(reader: Reader, site: Site) -> None:
    site.script.answer = lambda prompt: WORDS
    site.script.step_s = 0.004
    reader.say("Count.")
    expect(reader.text).to_contain_text("20")
    site.cut()
    expect(reader.note).to_contain_text("Reconnecting")
    expect(reader.note).to_be_hidden()
    site.script.step_s = 0.0
    reader.wait()
    expect(reader.text).to_have_text(WORDS)


def test_it_goes_on_when_the_browser_was_offline_for_a_moment(reader: Reader, site: Site) -> None:
    site.script.answer = lambda prompt: WORDS
    site.script.step_s = 0.004
    reader.say("Count.")
    expect(reader.text).to_contain_text("20")
    reader.page.context.set_offline(True)
    site.cut()
    expect(reader.note).to_contain_text("Reconnecting")
    reader.page.context.set_offline(False)
    site.script.step_s = 0.0
    reader.wait()
    expect(reader.text).to_have_text(WORDS)


def test_an_answer_goes_on_after_the_page_was_loaded_again(reader: Reader, site: Site) -> None:
    site.script.answer = lambda prompt: WORDS
    site.script.step_s = 0.004
    reader.say("Count.")
    expect(reader.text).to_contain_text("20")
    reader.page.reload()
    expect(reader.button("Stop")).to_be_visible()
    site.script.step_s = 0.0
    reader.wait()
    expect(reader.text).to_have_text(WORDS)


def test_one_that_goes_on_with_a_message_survives_it_too(reader: Reader, site: Site) -> None:
    site.script.answer = lambda prompt: WORDS
    site.script.step_s = 0.004
    reader.say("Count.")
    expect(reader.text).to_contain_text("10")
    reader.press("Escape")
    expect(reader.answer).to_have_attribute("data-state", "stopped")
    reader.click("Continue")
    expect(reader.text).to_contain_text("30")
    reader.page.reload()
    expect(reader.button("Stop")).to_be_visible()
    site.script.step_s = 0.0
    reader.wait()
    expect(reader.text).to_have_text(WORDS)


def test_an_answer_nobody_came_back_for_is_shown_as_far_as_it_was_kept(reader: Reader, site: Site) -> None:
    site.script.answer = lambda prompt: WORDS
    site.script.step_s = 0.004
    reader.say("Count.")
    expect(reader.text).to_contain_text("90")
    gone = {"error": {"message": "[stream] it is over", "type": "not_found_error", "param": None, "code": None}}
    reader.page.route("**/page/stream/*", lambda route: route.fulfill(status=404, json=gone))
    reader.page.reload()
    expect(reader.answer).to_have_attribute("data-state", "stopped")
    expect(reader.text).to_contain_text("20 21")
    expect(reader.button("Continue")).to_be_enabled()
    expect(reader.page.locator(".toast")).to_have_count(0)


def test_a_refused_request_is_explained_and_the_message_is_not_lost(reader: Reader, site: Site) -> None:
    reader.say("x" * 5000)
    expect(reader.toast).to_contain_text("context")
    expect(reader.answer).to_have_attribute("data-state", "failed")
    expect(reader.note).to_contain_text("context")
    expect(reader.questions).to_have_count(1)
    reader.click("Edit", reader.questions.first)
    reader.page.get_by_label("Edit message").fill("short")
    reader.click("Send again").wait()
    expect(reader.text).to_have_text("Yes.")


def test_a_busy_server_is_told_as_one_and_can_be_asked_again(reader: Reader) -> None:
    error = {"error": {"message": "[queue] the queue is full", "type": "overloaded_error", "param": None, "code": None}}
    busy = {"status": 429, "json": error, "headers": {"retry-after": "3"}}
    reader.page.route("**/page/stream", lambda route: route.fulfill(**busy), times=1)
    reader.say("Q")
    expect(reader.toast).to_have_text("The queue is full. Try again in 3 s.")
    expect(reader.toast).to_have_attribute("role", "alert")
    reader.click("Regenerate").wait()
    expect(reader.text).to_have_text("Yes.")


def test_an_error_in_the_middle_of_an_answer_leaves_what_was_written(reader: Reader, site: Site) -> None:
    site.script.answer = lambda prompt: WORDS
    site.script.step_s = 0.004
    reader.say("Count.")
    expect(reader.text).to_contain_text("10")
    site.script.is_broken = True
    expect(reader.answer).to_have_attribute("data-state", "failed")
    expect(reader.text).to_contain_text("8 9 10")
    expect(reader.note).to_contain_text("failed on our side")


def test_a_server_that_is_gone_is_named(reader: Reader) -> None:
    reader.page.route("**/page/stream", lambda route: route.abort())
    reader.say("Q")
    expect(reader.toast).to_contain_text("The server cannot be reached")


def test_a_toast_can_be_put_away(reader: Reader) -> None:
    reader.page.route("**/page/stream", lambda route: route.abort())
    reader.say("Q")
    reader.click("Dismiss", reader.toast)
    expect(reader.page.locator(".toast")).to_have_count(0)


def test_a_key_is_asked_for_and_a_wrong_one_refused(new_reader: Callable[..., Reader], locked_site: Site) -> None:
    reader = new_reader(locked_site).open()
    key = reader.page.get_by_label("API key")
    expect(key).to_be_focused()
    key.fill("open")
    key.press("Enter")
    expect(reader.page.locator("#login-error")).to_have_text("This key is not known here.")
    reader.press("Escape")
    expect(key).to_be_visible()
    key.fill("sesame")
    key.press("Enter")
    expect(reader.page.locator("dialog[open]")).to_have_count(0)
    expect(reader.field).to_be_focused()
    reader.ask("Well?")
    expect(reader.text).to_have_text("Yes.")
    assert reader.page.evaluate("document.cookie") == ""
    reader.page.reload()
    expect(reader.text).to_have_text("Yes.")
    reader.click("Sign out")
    expect(key).to_be_visible()


def test_a_session_that_ends_is_opened_again_without_losing_the_message(
    new_reader: Callable[..., Reader], locked_site: Site
) -> None:
    reader = new_reader(locked_site).open()
    key = reader.page.get_by_label("API key")
    key.fill("sesame")
    key.press("Enter")
    expect(reader.page.locator("dialog[open]")).to_have_count(0)
    reader.page.context.clear_cookies()
    reader.say("Still here?")
    key.fill("sesame")
    key.press("Enter")
    reader.wait()
    expect(reader.text).to_have_text("Yes.")
    expect(reader.questions).to_have_count(1)


def test_the_page_waits_for_a_model_that_is_still_being_loaded(new_reader: Callable[..., Reader]) -> None:
    is_loaded = threading.Event()
    site = Site(open_llm=lambda script: (is_loaded.wait(20), open_llm(script))[1])
    try:
        reader = new_reader(site).open()
        expect(reader.page.locator("#model")).to_have_text("Loading the model …")
        is_loaded.set()
        expect(reader.page.locator("#model")).to_have_text("scripted-1b")
        reader.ask("Well?")
    finally:
        is_loaded.set()
        site.close()
