"""Versions of messages: regenerate, edit, walk between them, delete."""

from __future__ import annotations

from reader import Reader, expect
from scripted_site import Site


def test_regenerating_adds_a_version_and_arrows_walk_between_them(reader: Reader, site: Site) -> None:
    site.script.answers("First.", "Second.")
    reader.ask("Well?").click("Regenerate").wait()
    expect(reader.text).to_have_text("Second.")
    place = reader.answer.locator(".place")
    expect(place).to_have_text("2 / 2")
    expect(reader.button("Next version", reader.answer)).to_be_disabled()
    reader.click("Previous version", reader.answer)
    expect(reader.text).to_have_text("First.")
    expect(place).to_have_text("1 / 2")
    reader.click("Next version", reader.answer)
    expect(reader.text).to_have_text("Second.")


def test_an_edited_message_branches_off_and_the_old_branch_stays(reader: Reader, site: Site) -> None:
    site.script.answer = lambda prompt: f"You said {prompt.strip().split('<user>')[-1]}."
    reader.ask("apples").ask("more")
    reader.click("Edit", reader.questions.first)
    editor = reader.page.get_by_label("Edit message")
    expect(editor).to_be_focused()
    expect(editor).to_have_value("apples")
    editor.fill("pears")
    reader.click("Send again").wait()
    expect(reader.answers).to_have_count(1)
    expect(reader.text).to_have_text("You said pears.")
    reader.click("Previous version", reader.questions.first)
    expect(reader.answers).to_have_count(2)
    expect(reader.answers.first.locator(".content")).to_have_text("You said apples.")
    expect(reader.text).to_have_text("You said more.")


def test_the_model_is_told_the_branch_that_is_shown(reader: Reader, site: Site) -> None:
    site.script.answers("One.", "Two.", "Three.")
    reader.ask("Q1").click("Regenerate").wait()
    reader.click("Previous version", reader.answer)
    expect(reader.text).to_have_text("One.")
    reader.ask("Q2")
    assert site.script.asked[-1].split() == ["<user>Q1", "<assistant>One.", "<user>Q2"]


def test_escape_leaves_a_message_as_it_was(reader: Reader) -> None:
    reader.ask("apples").click("Edit", reader.questions.first)
    reader.page.get_by_label("Edit message").fill("something else")
    reader.press("Escape")
    expect(reader.questions.first.locator(".content")).to_have_text("apples")
    expect(reader.questions).to_have_count(1)


def test_an_answer_can_be_rewritten_by_hand(reader: Reader, site: Site) -> None:
    reader.ask("Well?").click("Edit", reader.answer)
    reader.page.get_by_label("Edit message").fill("It **depends**.")
    reader.click("Save as a version")
    expect(reader.text.locator("strong")).to_have_text("depends")
    expect(reader.answer.locator(".place")).to_have_text("2 / 2")
    reader.ask("On what?")
    assert "<assistant>It **depends**." in site.script.asked[-1]


def test_a_deleted_message_takes_what_follows_and_comes_back_with_undo(reader: Reader) -> None:
    reader.ask("Q1").ask("Q2")
    reader.click("Delete", reader.questions.last)
    expect(reader.questions).to_have_count(1)
    expect(reader.answers).to_have_count(1)
    reader.click("Undo", reader.toast)
    expect(reader.questions).to_have_count(2)
    expect(reader.answers).to_have_count(2)
    reader.page.reload()
    expect(reader.answers).to_have_count(2)


def test_deleting_one_version_shows_another(reader: Reader, site: Site) -> None:
    site.script.answers("First.", "Second.")
    reader.ask("Well?").click("Regenerate").wait()
    reader.click("Delete", reader.answer)
    expect(reader.text).to_have_text("First.")
    expect(reader.answer.locator(".versions")).to_be_hidden()


def test_a_message_whose_answer_is_gone_can_be_answered(reader: Reader, site: Site) -> None:
    site.script.answers("First.", "Second.")
    reader.ask("Well?").click("Delete", reader.answer)
    expect(reader.answers).to_have_count(0)
    reader.click("Answer this").wait()
    expect(reader.text).to_have_text("Second.")
    expect(reader.button("Answer this")).to_be_hidden()


def test_versions_are_still_there_after_a_reload(reader: Reader, site: Site) -> None:
    site.script.answers("First.", "Second.")
    reader.ask("Well?").click("Regenerate").wait()
    reader.click("Previous version", reader.answer)
    expect(reader.text).to_have_text("First.")
    reader.page.reload()
    expect(reader.text).to_have_text("First.")
    expect(reader.answer.locator(".place")).to_have_text("1 / 2")


def test_while_an_answer_is_written_nothing_else_is_changed(reader: Reader, site: Site) -> None:
    reader.ask("Q1")
    site.script.answer = lambda prompt: "word " * 500
    site.script.step_s = 0.004
    reader.say("Q2")
    expect(reader.text).to_contain_text("word")
    for name in ("Edit", "Delete"):
        expect(reader.button(name, reader.questions.first)).to_be_disabled()
    reader.press("Alt+r")
    expect(reader.answers).to_have_count(2)
    reader.press("Escape")
