"""Colours, small screens, the keyboard, and those who do not see the page."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from reader import Page, Reader, expect
from scripted_site import Site

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def ground(page: Page) -> str:
    return page.evaluate("getComputedStyle(document.body).backgroundColor")


def test_colours_follow_the_system(reader: Reader) -> None:
    reader.page.emulate_media(color_scheme="light")
    light = ground(reader.page)
    reader.page.emulate_media(color_scheme="dark")
    assert ground(reader.page) != light


def test_the_switch_goes_over_the_system_and_is_kept(reader: Reader) -> None:
    reader.page.emulate_media(color_scheme="light")
    light = ground(reader.page)
    reader.click("Dark")
    expect(reader.button("Dark")).to_have_attribute("aria-pressed", "true")
    dark = ground(reader.page)
    assert dark != light
    reader.page.reload()
    assert ground(reader.page) == dark
    reader.click("As the system")
    assert ground(reader.page) == light


def contrast(page: Page, selector: str) -> float:
    """Of a text on what lies behind it (WCAG 2.2)."""
    return page.evaluate(
        """(selector) => {
            const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
            const read = (colour) => {
                paint.clearRect(0, 0, 1, 1);
                paint.fillStyle = colour;
                paint.fillRect(0, 0, 1, 1);
                return [...paint.getImageData(0, 0, 1, 1).data];
            };
            const light = (colour) => {
                const [r, g, b] = colour.map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
            };
            const node = document.querySelector(selector);
            let behind = node;
            while (read(getComputedStyle(behind).backgroundColor)[3] < 255) behind = behind.parentElement;
            const [a, b] = [read(getComputedStyle(node).color), read(getComputedStyle(behind).backgroundColor)]
                .map(light).sort((x, y) => y - x);
            return (a + 0.05) / (b + 0.05);
        }""",
        selector,
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_can_be_told_from_its_ground(reader: Reader, site: Site, scheme: str) -> None:
    code = "```python\n# note\nx = 'a' + 1\n```"
    site.script.answer = lambda prompt: f"Text `code` [link](https://example.org)\n\n> quote\n\n{code}\n"
    site.script.step_s = 0.001
    reader.page.emulate_media(color_scheme=scheme)
    reader.ask("Show.").click("Settings")
    selectors = [
        *("#title", "#model", ".under", ".bubble", ".content p", ".content p code", ".content a", "blockquote p"),
        *(".code-language", "pre .c1", "pre .s1", "pre .mi", ".stats span", "#conversations a", ".knob .hint"),
        *(".group", "#new", "#system"),
    ]
    ratios = {selector: round(contrast(reader.page, selector), 2) for selector in selectors}
    assert {selector: ratio for selector, ratio in ratios.items() if ratio < 4.5} == {}


def test_a_phone_shows_one_thing_at_a_time(new_reader: Callable[..., Reader], site: Site) -> None:
    site.script.answer = lambda prompt: "Wide: `" + "x" * 300 + "`\n\n```\n" + "y" * 300 + "\n```\n\n" + "z" * 300
    reader = new_reader(site, **PHONE).open()
    reader.ask("Show.")
    width = "document.documentElement.scrollWidth"
    assert reader.page.evaluate(width) == 390
    expect(reader.titles).not_to_be_in_viewport()
    reader.click("Conversations")
    expect(reader.titles).to_be_in_viewport()
    expect(reader.button("Hide conversations")).to_be_focused()
    assert reader.page.locator("#main").get_attribute("inert") is not None
    reader.page.touchscreen.tap(380, 400)
    expect(reader.titles).not_to_be_in_viewport()
    reader.click("Settings")
    expect(reader.page.get_by_label("System prompt")).to_be_in_viewport()
    reader.press("Escape")
    expect(reader.page.get_by_label("System prompt")).not_to_be_in_viewport()
    assert reader.page.evaluate(width) == 390
    expect(reader.button("Regenerate")).to_be_visible()


def test_on_a_phone_opening_a_conversation_closes_the_list(new_reader: Callable[..., Reader], site: Site) -> None:
    reader = new_reader(site, **PHONE).open()
    reader.ask("First").begin(reader.page.locator(".bar")).ask("Second")
    reader.click("Conversations")
    reader.titles.last.click()
    expect(reader.questions).to_contain_text(["First"])
    expect(reader.titles.last).not_to_be_in_viewport()


def test_shift_enter_makes_a_new_line_and_the_field_grows(reader: Reader) -> None:
    before = reader.field.bounding_box()
    reader.field.fill("one")
    reader.field.press("Shift+Enter")
    reader.page.keyboard.type("two")
    expect(reader.field).to_have_value("one\ntwo")
    after = reader.field.bounding_box()
    assert before is not None
    assert after is not None
    assert after["height"] > before["height"]


def test_everything_has_its_keys(reader: Reader, site: Site) -> None:
    site.script.answers("One.", "Two.", "Three.", "Four.")
    reader.ask("Q")
    reader.press("Alt+r").wait()
    expect(reader.text).to_have_text("Two.")
    reader.press("Alt+Comma")
    expect(reader.text).to_have_text("One.")
    reader.press("Alt+Period")
    expect(reader.text).to_have_text("Two.")
    reader.press("Alt+c")
    expect(reader.toast).to_contain_text("Answer copied.")
    reader.press("Alt+e")
    expect(reader.page.get_by_label("Edit message")).to_be_focused()
    reader.press("Escape")
    reader.field.focus()
    reader.press("ArrowUp")
    expect(reader.page.get_by_label("Edit message")).to_be_focused()
    reader.press("Escape")
    reader.press("Control+k")
    expect(reader.page.get_by_label("Search conversations")).to_be_focused()
    reader.press("ArrowDown")
    expect(reader.titles).to_be_focused()
    reader.press("Control+b")
    expect(reader.titles).not_to_be_in_viewport()
    reader.press("Control+Period")
    expect(reader.page.get_by_label("System prompt")).to_be_visible()
    reader.press("Control+Shift+o")
    expect(reader.page.get_by_text("What is on your mind?")).to_be_visible()
    expect(reader.field).to_be_focused()


def test_help_lists_the_keys_and_gives_the_focus_back(reader: Reader) -> None:
    reader.button("Keyboard shortcuts").focus()
    reader.press("Enter")
    dialog = reader.page.get_by_role("dialog", name="Keyboard shortcuts")
    expect(dialog).to_contain_text("Regenerate the answer")
    assert dialog.locator("dt").count() == dialog.locator("dd").count() > 10
    reader.press("Escape")
    expect(dialog).to_be_hidden()
    expect(reader.button("Keyboard shortcuts")).to_be_focused()
    reader.press("Control+/")
    expect(dialog).to_be_visible()
    reader.press("Control+/")
    expect(dialog).to_be_hidden()


def test_every_control_has_a_name_and_no_id_is_used_twice(reader: Reader) -> None:
    reader.ask("Q").click("Settings")
    nameless, double = reader.page.evaluate(
        """() => {
            const named = (node) => node.getAttribute("aria-label") || node.labels?.length || node.textContent.trim();
            const controls = [...document.querySelectorAll("button, input, select, textarea, a[href]")];
            const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
            return [
                controls.filter((node) => !node.hidden && !named(node)).map((node) => node.outerHTML.slice(0, 120)),
                ids.filter((id, at) => ids.indexOf(id) !== at),
            ];
        }"""
    )
    assert nameless == []
    assert double == []
    expect(reader.page.get_by_role("main")).to_have_count(1)
    expect(reader.page.get_by_role("article")).to_have_count(2)


def test_hidden_panes_take_no_focus(reader: Reader) -> None:
    reader.press("Control+b")
    assert reader.page.locator("#sidebar").get_attribute("inert") is not None
    reader.page.evaluate("document.activeElement.blur()")
    for _ in range(25):
        reader.press("Tab")
        assert reader.page.evaluate("document.activeElement.closest('[inert]')") is None


def test_an_example_fills_the_field_without_sending_it(reader: Reader) -> None:
    reader.click("Explain how a hash table works")
    expect(reader.field).to_have_value("Explain how a hash table works, with a small example in Python.")
    expect(reader.field).to_be_focused()
    expect(reader.questions).to_have_count(0)


def test_what_was_begun_stays_with_its_conversation(reader: Reader) -> None:
    reader.ask("First")
    reader.field.fill("half a thought")
    reader.click("New conversation")
    expect(reader.field).to_have_value("")
    reader.titles.click()
    expect(reader.field).to_have_value("half a thought")


def test_nothing_moves_for_those_who_want_no_motion(new_reader: Callable[..., Reader], site: Site) -> None:
    duration = "getComputedStyle(document.body).transitionDuration"
    assert new_reader(site, reduced_motion="no-preference").open().page.evaluate(duration) != "0s"
    assert new_reader(site).open().page.evaluate(duration) == "0s"
