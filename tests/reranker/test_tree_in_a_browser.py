"""The page of a tree in a real browser: what is pointed at, clicked and walked to is told."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from trees import Grown, searched

from llm_decoder.reranker.tree_page import page_of
from llm_decoder.search.run_file import SearchRun

pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("needs chromium", allow_module_level=True)

from playwright.sync_api import expect, sync_playwright  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

TIMEOUT_MS = 30_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser: Browser, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """Opens a run's page. It may neither complain, nor ask, nor fetch."""
    troubles: list[str] = []
    contexts = []

    def make(run: SearchRun, **options: object) -> Page:
        file = tmp_path / "tree.html"
        file.write_text(page_of(run), encoding="utf-8", errors="replace")
        context = browser.new_context(viewport={"width": 1200, "height": 800}, **options)  # type: ignore[arg-type]
        context.set_default_timeout(TIMEOUT_MS)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(message.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: troubles.append(dialog.message))
        page.on("request", lambda request: troubles.append(request.url) if request.url != file.as_uri() else None)
        page.goto(file.as_uri())
        page.wait_for_selector("body[data-ready]")
        return page

    yield make
    for context in contexts:
        context.close()
    assert troubles == []


def small() -> SearchRun:
    grown = Grown()
    stem = grown.add(0, " there was", -0.1)
    good = grown.add(stem, " a cat", -0.2, "finished", "stop")
    grown.add(stem, " an <b>owl</b>", -3.0, "pruned", "outscored")
    return grown.run(good)


def test_pointing_at_a_token_tells_what_it_is(open_page: Callable[..., Page]) -> None:
    page = open_page(small())
    expect(page.locator("#tip")).to_be_hidden()
    page.locator('text[data-node="3"]').hover()
    tip = page.locator("#tip")
    expect(tip).to_contain_text('token: " an <b>owl</b>" (7)')
    expect(tip).to_contain_text("log probability: -3.000 (5.0 %)")
    expect(tip).to_contain_text("sum: -3.100")
    expect(tip).to_contain_text("state: pruned: outscored")


def test_a_click_tells_the_text_from_the_root(open_page: Callable[..., Page]) -> None:
    page = open_page(small())
    expect(page.locator("#path")).to_have_text("Once upon a time")
    page.locator('text[data-node="3"]').click()
    expect(page.locator("#path")).to_have_text("Once upon a time there was an <b>owl</b>")
    expect(page.locator("#path b")).to_have_count(0)
    expect(page.locator("#tree .chosen")).to_have_count(2)


def test_the_keys_walk_along_the_tree(open_page: Callable[..., Page]) -> None:
    page = open_page(small())
    page.locator("#tree").focus()
    for key, text in [
        ("ArrowDown", " there was"),
        ("ArrowDown", " there was a cat"),
        ("ArrowRight", " there was an <b>owl</b>"),
        ("ArrowRight", " there was an <b>owl</b>"),
        ("ArrowUp", " there was"),
        ("Escape", ""),
    ]:
        page.keyboard.press(key)
        expect(page.locator("#path")).to_have_text("Once upon a time" + text)


def test_a_candidate_shows_where_it_ends_wherever_that_is(open_page: Callable[..., Page]) -> None:
    run = searched(7, 8, 80)
    page = open_page(run)
    leaf = run.candidates[-1]["leaf"]
    end = page.locator(f'text[data-node="{leaf}"]')
    expect(end).not_to_be_in_viewport()
    page.locator("tr[data-leaf]").last.click()
    expect(end).to_be_in_viewport()
    expect(page.locator("#tree .chosen")).to_have_count(80)


def test_it_is_drawn_closer_moved_and_seen_whole(open_page: Callable[..., Page]) -> None:
    page = open_page(searched(7, 8, 80))

    def seen() -> list[float]:
        return [float(x) for x in (page.locator("#tree").get_attribute("viewBox") or "").split()]

    before = seen()
    page.locator("#closer").click()
    assert seen()[2] == pytest.approx(before[2] * 0.8)
    page.locator("#whole").click()
    whole = seen()
    assert whole[1] + whole[3] > before[3]
    page.mouse.move(300, 500)
    page.mouse.down()
    page.mouse.move(400, 520, steps=4)
    page.mouse.up()
    assert seen()[0] < whole[0]
    assert seen()[1] < whole[1]
    page.mouse.wheel(0, 100)
    assert seen()[2] == whole[2]


@pytest.mark.parametrize(("scheme", "colour"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 23, 28)")])
def test_it_is_light_or_dark_as_the_system_is(open_page: Callable[..., Page], scheme: str, colour: str) -> None:
    page = open_page(small(), color_scheme=scheme)
    expect(page.locator("body")).to_have_css("background-color", colour)
    expect(page.locator("#tree rect.f-page").first).to_have_css("fill", colour)


def test_it_fits_a_phone(open_page: Callable[..., Page]) -> None:
    page = open_page(searched(1), is_mobile=True, has_touch=True)
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_texts_that_would_be_scripts_are_texts(open_page: Callable[..., Page]) -> None:
    grown = Grown()
    leaf = grown.add(grown.add(0, "<img src=x onerror=alert(1)>"), "</script><script>alert(2)</script>")
    page = open_page(grown.run(leaf, prompt="<svg onload=alert(3)>", model="</title><script>alert(4)</script>"))
    page.locator("tr[data-leaf]").click()
    expect(page.locator("#path")).to_have_text(
        "<svg onload=alert(3)><img src=x onerror=alert(1)></script><script>alert(2)</script>"
    )
    expect(page.locator("img")).to_have_count(0)
