"""Conversations kept in the browser: listed, opened, searched, renamed, exported, imported, deleted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reader import Reader, expect
from scripted_site import Site


def test_a_conversation_is_still_there_after_a_reload(reader: Reader, site: Site) -> None:
    site.script.answer = lambda prompt: "A **bold** word."
    reader.ask("Remember this.")
    reader.page.reload()
    expect(reader.questions).to_contain_text(["Remember this."])
    expect(reader.text.locator("strong")).to_have_text("bold")
    expect(reader.titles).to_have_text(["Remember this."])


def test_a_new_one_begins_empty_and_the_old_one_can_be_opened_again(reader: Reader) -> None:
    reader.ask("First topic")
    reader.begin()
    expect(reader.answers).to_have_count(0)
    expect(reader.page.get_by_text("What is on your mind?")).to_be_visible()
    expect(reader.field).to_be_focused()
    reader.ask("Second topic")
    expect(reader.titles).to_have_text(["Second topic", "First topic"])
    reader.titles.last.click()
    expect(reader.questions).to_contain_text(["First topic"])
    expect(reader.titles.last).to_have_attribute("aria-current", "page")
    reader.page.go_back()
    expect(reader.questions).to_contain_text(["Second topic"])


def test_an_answer_goes_on_while_another_conversation_is_read(reader: Reader, site: Site) -> None:
    reader.ask("Quiet")
    reader.begin()
    site.script.answer = lambda prompt: "word " * 100
    site.script.step_s = 0.002
    reader.say("Loud")
    expect(reader.text).to_contain_text("word")
    reader.titles.last.click()
    expect(reader.questions).to_contain_text(["Quiet"])
    expect(reader.page.locator("#conversations .is-running")).to_have_text("Loud")
    expect(reader.button("Send")).to_be_visible()
    reader.titles.first.click()
    expect(reader.button("Stop")).to_be_visible()
    site.script.step_s = 0.0
    reader.wait()
    assert reader.text.inner_text().count("word") == 100
    expect(reader.page.locator("#conversations .is-running")).to_have_count(0)


def test_the_one_that_was_opened_last_is_shown_however_fast_the_reader_clicks(reader: Reader) -> None:
    reader.ask("One").begin().ask("Two")
    reader.page.route("**/page/render", lambda route: None)  # its answer never comes: opening takes a moment
    reader.page.reload()
    reader.page.wait_for_selector("body[data-ready]")
    reader.titles.last.click()
    reader.click("New conversation")
    expect(reader.page.get_by_text("What is on your mind?")).to_be_visible()
    reader.page.wait_for_timeout(800)
    expect(reader.questions).to_have_count(0)


def test_a_title_is_the_first_line_cut_after_a_word(reader: Reader) -> None:
    reader.ask("Please explain in a few words why the sky is blue and the sunset is red\nand more")
    expect(reader.titles).to_have_text("Please explain in a few words why the sky is blue and the …")


def test_a_conversation_can_be_renamed(reader: Reader) -> None:
    reader.ask("Old name")
    reader.titles.hover()
    reader.click("Rename Old name")
    field = reader.page.get_by_label("Title")
    expect(field).to_be_focused()
    field.fill("New name")
    field.press("Enter")
    expect(reader.titles).to_have_text("New name")
    expect(reader.page.get_by_role("heading", name="New name")).to_be_visible()
    reader.page.reload()
    expect(reader.titles).to_have_text("New name")


def test_escape_keeps_the_old_name(reader: Reader) -> None:
    reader.ask("Old name")
    reader.titles.hover()
    reader.click("Rename Old name")
    reader.page.get_by_label("Title").fill("New name")
    reader.press("Escape")
    expect(reader.titles).to_have_text("Old name")


def test_search_finds_titles_and_what_was_said(reader: Reader, site: Site) -> None:
    site.script.answers("Bananas are berries.", "Yes.")
    reader.ask("Fruit")
    reader.begin().ask("Stones")
    search = reader.page.get_by_label("Search conversations")
    search.fill("BERRIES")
    expect(reader.titles).to_have_text(["Fruit"])
    expect(reader.page.locator("#search-count")).to_have_text("1 found")
    search.fill("ston")
    expect(reader.titles).to_have_text(["Stones"])
    search.fill("nowhere")
    expect(reader.titles).to_have_count(0)
    search.fill("")
    expect(reader.titles).to_have_count(2)


def test_a_deleted_conversation_comes_back_with_undo(reader: Reader) -> None:
    reader.ask("Dear to me")
    reader.titles.hover()
    reader.click("Delete Dear to me")
    expect(reader.titles).to_have_count(0)
    expect(reader.page.get_by_text("What is on your mind?")).to_be_visible()
    reader.click("Undo", reader.toast)
    expect(reader.titles).to_have_text(["Dear to me"])
    reader.titles.click()
    expect(reader.text).to_have_text("Yes.")


def test_one_that_is_deleted_while_it_is_written_stays_deleted(reader: Reader, site: Site) -> None:
    site.script.answer = lambda prompt: "word " * 500
    site.script.step_s = 0.004
    reader.say("Loud")
    expect(reader.text).to_contain_text("word")
    reader.titles.hover()
    reader.click("Delete Loud")
    expect(reader.toast).to_contain_text("Conversation deleted.")
    reader.page.reload()
    expect(reader.page.get_by_text("What you write is kept")).to_be_visible()
    expect(reader.titles).to_have_count(0)


def export(reader: Reader, button: str, folder: Path) -> Path:
    with reader.page.expect_download() as download:
        reader.click(button)
    path = folder / download.value.suggested_filename
    download.value.save_as(path)
    return path


def test_an_export_comes_in_again_with_all_its_versions(reader: Reader, site: Site, tmp_path: Path) -> None:
    site.script.answers("First.", "Second.")
    reader.ask("A walk, in the rain!").click("Regenerate").wait()
    reader.titles.hover()
    path = export(reader, "Export A walk, in the rain!", tmp_path)
    assert path.name == "a-walk-in-the-rain.json"
    value = json.loads(path.read_text())
    assert value["format"] == "llm_decoder.conversations"
    assert [message["content"] for message in value["conversations"][0]["messages"]].count("First.") == 1
    reader.titles.hover()
    reader.click("Delete A walk, in the rain!")
    reader.page.locator("#import-file").set_input_files(path)
    expect(reader.toast).to_contain_text("1 conversation imported.")
    reader.titles.click()
    expect(reader.text).to_have_text("Second.")
    expect(reader.answer.locator(".place")).to_have_text("2 / 2")


def test_all_conversations_go_into_one_file(reader: Reader, tmp_path: Path) -> None:
    reader.ask("One").begin().ask("Two")
    value = json.loads(export(reader, "Export all conversations", tmp_path).read_text())
    assert [conversation["title"] for conversation in value["conversations"]] == ["Two", "One"]


def test_an_import_next_to_the_original_is_a_second_conversation(reader: Reader, tmp_path: Path) -> None:
    reader.ask("One")
    path = export(reader, "Export all conversations", tmp_path)
    reader.page.locator("#import-file").set_input_files(path)
    expect(reader.titles).to_have_text(["One", "One"])
    reader.titles.first.click()
    reader.ask("More")
    expect(reader.questions).to_have_count(2)
    reader.titles.last.click()
    expect(reader.questions).to_have_count(1)
    expect(reader.answers).to_have_count(1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("no json", "is not a JSON file"),
        ("[1, 2]", "holds no conversations"),
        ('{"format": "llm_decoder.conversations", "version": 99, "conversations": []}', "another version"),
        ('{"format": "llm_decoder.conversations", "version": 1, "conversations": [7]}', "has no messages"),
    ],
)
def test_a_file_of_something_else_is_refused_with_a_sentence(
    reader: Reader, tmp_path: Path, text: str, told: str
) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    reader.page.locator("#import-file").set_input_files(path)
    expect(reader.toast).to_contain_text(told)
    expect(reader.titles).to_have_count(0)


def test_a_file_that_is_wrong_in_its_details_brings_in_what_is_right(reader: Reader, tmp_path: Path) -> None:
    messages = [
        {"id": "a", "parent": "b", "role": "user", "content": "In a circle", "created": 1},
        {"id": "b", "parent": "a", "role": "assistant", "content": 7, "created": "x", "stats": {"tokens": "many"}},
        {"id": "c", "parent": "missing", "role": "system", "content": "ignored"},
        {"id": "d", "parent": None, "role": "user", "content": "Alone", "created": 5, "state": "streaming"},
        None,
    ]
    settings = {"system": 5, "sampling": {"temperature": 99, "top_k": 40, "__proto__": 1, "evil": 2}}
    conversation = {"title": ["x"], "messages": messages, "leaf": "d", "settings": settings}
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"format": "llm_decoder.conversations", "version": 1, "conversations": [conversation]}))
    reader.page.locator("#import-file").set_input_files(path)
    expect(reader.titles).to_have_text(["Imported conversation"])
    reader.titles.click()
    expect(reader.questions).to_contain_text(["Alone"])
    reader.click("Settings")
    expect(reader.page.get_by_label("Temperature", exact=True)).to_have_value("1")
    expect(reader.page.get_by_label("Top k", exact=True)).to_have_value("40")
