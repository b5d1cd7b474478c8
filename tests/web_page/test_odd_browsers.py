"""Browsers, files and readers that are not as one would have them: no storage, two tabs, circles, keys alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from reader import Reader, expect
from scripted_site import Site

WORDS = " ".join(str(i) for i in range(150))
FULL = """IDBObjectStore.prototype.put = () => { throw new DOMException("full", "QuotaExceededError"); };"""


def conversations_file(folder: Path, messages: list[Any], **fields: Any) -> Path:
    path = folder / "conversations.json"
    conversation = {"title": "From a file", "messages": messages} | fields
    path.write_text(json.dumps({"format": "llm_decoder.conversations", "version": 1, "conversations": [conversation]}))
    return path


def test_a_browser_that_keeps_nothing_can_talk_all_the_same(new_reader: Callable[..., Reader], site: Site) -> None:
    site.script.answers("First.", "Second.", "Third.")
    reader = new_reader(site)
    reader.page.add_init_script("Object.defineProperty(window, 'indexedDB', { value: undefined })")
    reader.open()
    expect(reader.toast).to_contain_text("This browser keeps no data for this page")
    reader.ask("Well?").click("Regenerate").wait()
    reader.click("Previous version", reader.answer)
    expect(reader.text).to_have_text("First.")
    reader.begin().ask("Other")
    expect(reader.titles).to_have_text(["Other", "Well?"])
    reader.page.get_by_label("Search conversations").fill("second")
    expect(reader.titles).to_have_text(["Well?"])
    reader.titles.click()
    expect(reader.text).to_have_text("First.")
    reader.titles.hover()
    reader.click("Delete Well?").click("Undo", reader.toast)
    expect(reader.titles).to_have_text(["Well?"])


def test_a_full_storage_is_told_once_and_the_answer_goes_on(new_reader: Callable[..., Reader], site: Site) -> None:
    reader = new_reader(site)
    reader.page.add_init_script(FULL)
    reader.open().ask("Well?")
    expect(reader.text).to_have_text("Yes.")
    reader.click("Settings")
    reader.page.get_by_label("System prompt").fill("Be brief.")
    expect(reader.page.locator(".toast")).to_have_count(1)
    expect(reader.toast).to_contain_text("storage is full")


def second_tab(reader: Reader) -> Reader:
    other = Reader(reader.page.context.new_page(), reader.url)
    other.open(f"#{reader.page.url.partition('#')[2]}")
    return other


def test_two_tabs_show_one_conversation_and_do_not_take_its_answer_from_each_other(reader: Reader, site: Site) -> None:
    site.script.answer = lambda prompt: WORDS
    site.script.step_s = 0.004
    reader.say("Count.")
    expect(reader.text).to_contain_text("20")
    other = second_tab(reader)
    expect(other.text).to_contain_text("30")
    expect(other.button("Send")).to_be_disabled()
    expect(reader.note).to_be_hidden()
    expect(reader.button("Stop")).to_be_visible()
    site.script.step_s = 0.0
    reader.wait()
    other.wait()
    expect(other.text).to_have_text(WORDS)
    site.script.answer = lambda prompt: "Second."
    other.click("Regenerate").wait()
    expect(reader.text).to_have_text("Second.")
    expect(reader.answer.locator(".place")).to_have_text("2 / 2")
    assert other.troubles == []


def test_a_tab_takes_over_what_another_one_leaves(reader: Reader, site: Site) -> None:
    site.script.answer = lambda prompt: WORDS
    site.script.step_s = 0.004
    reader.say("Count.")
    expect(reader.text).to_contain_text("20")
    other = second_tab(reader)
    expect(other.text).to_contain_text("20")
    reader.page.goto("about:blank")
    reader.foreign.clear()
    expect(other.button("Stop")).to_be_visible()
    site.script.step_s = 0.0
    other.wait()
    expect(other.text).to_have_text(WORDS)


def test_an_address_that_was_cut_opens_an_empty_page(new_reader: Callable[..., Reader], site: Site) -> None:
    reader = new_reader(site).open("#%E0%A4%A")
    reader.ask("Well?")


def test_a_circle_in_a_file_can_be_walked_and_deleted(reader: Reader, tmp_path: Path) -> None:
    messages = [
        {"id": "a", "parent": "b", "role": "user", "content": "A", "created": 1},
        {"id": "b", "parent": "a", "role": "assistant", "content": "B", "created": 2},
        {"id": "c", "parent": "b", "role": "user", "content": "C", "created": 3},
        {"id": "d", "parent": "d", "role": "user", "content": "D", "created": 4},
    ]
    reader.page.locator("#import-file").set_input_files(conversations_file(tmp_path, messages, leaf="c"))
    reader.titles.click()
    expect(reader.questions.last).to_contain_text("C")
    for name in ("Previous version", "Next version"):  # where the circle was cut, and so what has versions, is open
        reader.questions.first.get_by_label(name).evaluate("(button) => button.click()")
    reader.click("Delete", reader.questions.first)
    expect(reader.toast).to_contain_text("Message deleted.")
    reader.begin().ask("Still here?")


def test_times_that_have_not_come_do_not_stand_first_for_ever(reader: Reader, tmp_path: Path) -> None:
    messages = [{"id": "a", "parent": None, "role": "user", "content": "A", "created": 1e300}]
    path = conversations_file(tmp_path, messages, created=-1e300, updated=1e300)
    reader.page.locator("#import-file").set_input_files(path)
    expect(reader.titles).to_have_text(["From a file"])
    reader.ask("Newer")
    expect(reader.titles).to_have_text(["Newer", "From a file"])


def test_versions_stay_in_order_when_the_clock_is_set_back(reader: Reader, site: Site) -> None:
    site.script.answers("First.", "Second.")
    reader.ask("Well?")
    reader.page.add_init_script("Date.now = () => 1000")
    reader.page.reload()
    expect(reader.text).to_have_text("First.")
    reader.click("Regenerate").wait()
    expect(reader.text).to_have_text("Second.")
    expect(reader.answer.locator(".place")).to_have_text("2 / 2")


def test_what_could_not_be_copied_is_said(reader: Reader) -> None:
    reader.page.evaluate(
        """() => {
            navigator.clipboard.writeText = () => Promise.reject(new Error("denied"));
            document.execCommand = () => false;
        }"""
    )
    reader.ask("Well?").click("Copy", reader.answer)
    expect(reader.toast).to_contain_text("did not allow to copy")


def test_a_failed_answer_has_a_button_that_tries_again_and_is_no_version(reader: Reader) -> None:
    reader.page.route("**/page/stream", lambda route: route.abort(), times=1)
    reader.say("Q").click("Try again")
    expect(reader.text).to_have_text("Yes.")
    expect(reader.answer.locator(".versions")).to_be_hidden()
    expect(reader.button("Try again")).to_have_count(0)
    reader.page.reload()
    expect(reader.answers).to_have_count(1)


def test_an_answer_that_the_server_gave_up_can_go_on(reader: Reader, site: Site) -> None:
    site.script.answer = lambda prompt: WORDS
    site.script.step_s = 0.004
    reader.say("Count.")
    expect(reader.text).to_contain_text("20")
    gone = {"error": {"message": "[stream] it is over", "type": "not_found_error", "param": None, "code": None}}
    reader.page.route("**/page/stream/*", lambda route: route.fulfill(status=404, json=gone))
    site.cut()
    expect(reader.note).to_contain_text("The connection was lost, and the server has stopped this answer.")
    reader.page.unroute("**/page/stream/*")
    site.script.step_s = 0.0
    reader.click("Go on from here").wait()
    expect(reader.text).to_have_text(WORDS)


def test_who_works_by_keys_keeps_his_place(reader: Reader, site: Site) -> None:
    def focused() -> str | None:
        return reader.page.evaluate("document.activeElement.closest('.message')?.className")

    site.script.answers("First.", "Second.", "Edited.")
    reader.ask("Well?")
    reader.button("Regenerate").focus()
    reader.press("Enter").wait()
    expect(reader.text).to_have_text("Second.")
    assert "assistant" in (focused() or "")
    reader.button("Previous version").focus()
    reader.press("Enter")
    expect(reader.text).to_have_text("First.")
    assert "assistant" in (focused() or "")
    reader.button("Next version").focus()
    reader.press("Enter")
    expect(reader.text).to_have_text("Second.")
    reader.button("Delete", reader.answer).focus()
    reader.press("Enter")
    expect(reader.text).to_have_text("First.")
    expect(reader.button("Delete", reader.answer)).to_be_focused()


def test_who_names_and_deletes_conversations_by_keys_keeps_his_place(reader: Reader) -> None:
    reader.ask("One").begin().ask("Two").begin()
    reader.titles.last.focus()
    reader.press("Tab")
    expect(reader.button("Rename One")).to_be_focused()
    reader.press("Enter")
    reader.page.get_by_label("Title").fill("Uno")
    reader.press("Enter")
    expect(reader.titles.last).to_have_text("Uno")
    expect(reader.titles.last).to_be_focused()
    reader.button("Delete Uno").focus()
    reader.press("Enter")
    expect(reader.titles).to_have_text(["Two"])
    expect(reader.titles).to_be_focused()


def test_words_that_are_read_from_the_right_stand_there(reader: Reader, site: Site) -> None:
    site.script.answer = lambda prompt: "مرحبا بالعالم\n\n- عنصر\n\n```\ncode\n```\n\nEnglish"
    reader.ask("سؤال قصير")
    direction = "(node) => getComputedStyle(node).direction"
    assert reader.questions.locator(".content").evaluate(direction) == "rtl"
    assert reader.titles.evaluate(direction) == "rtl"
    assert reader.text.locator("> p").first.evaluate(direction) == "rtl"
    assert reader.text.locator("> ul").evaluate(direction) == "rtl"
    assert reader.text.locator("pre").evaluate(direction) == "ltr"
    assert reader.text.locator("> p").last.evaluate(direction) == "ltr"


@pytest.mark.parametrize("width", [640, 320])
def test_nothing_is_cut_off_where_everything_is_large(
    new_reader: Callable[..., Reader], site: Site, width: int
) -> None:
    """A window of 1280 pixels at 200 % and at 400 %."""
    site.script.answer = lambda prompt: "x" * 400 + "\n\n| a | b |\n|---|---|\n| " + "y" * 90 + " | z |\n"
    reader = new_reader(site, viewport={"width": width, "height": 430}).open()
    reader.ask("w" * 300)
    for pane in ("Settings", "Conversations"):
        reader.click(pane)
        assert reader.page.evaluate("document.documentElement.scrollWidth") == width
        reader.press("Escape")
    expect(reader.field).to_be_in_viewport()


def test_a_thousand_messages_open_at_their_end(reader: Reader, tmp_path: Path) -> None:
    messages = [
        {
            "id": str(i),
            "parent": str(i - 1) if i else None,
            "role": "assistant" if i % 2 else "user",
            "content": f"Message **{i}**",
            "created": i,
        }
        for i in range(1000)
    ]
    reader.page.locator("#import-file").set_input_files(conversations_file(tmp_path, messages, leaf="999"))
    reader.titles.click()
    expect(reader.page.locator(".message")).to_have_count(1000)
    expect(reader.text.locator("strong")).to_have_text("999")
    expect(reader.answer).to_be_in_viewport()
    reader.ask("One more")
    expect(reader.answer).to_be_in_viewport()
