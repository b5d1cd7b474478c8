"""Draws docs/page_light.png, page_dark.png and page_phone.png: the chat page over a model that says what it is told;
and page_search.png: a search by the embedded model.

python tools/draw_page.py docs        # needs playwright and chromium
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1] / "tests"
sys.path[:0] = [str(TESTS), str(TESTS / "web_page")]

from chromium import CHROMIUM, FLAGS  # noqa: E402
from playwright.sync_api import Browser, Page, sync_playwright  # noqa: E402
from scripted_site import Site  # noqa: E402

from llm_decoder.llm import LLM  # noqa: E402

DAY_MS = 86_400_000
VIEWPORTS = {"light": {"width": 1200, "height": 900}, "dark": {"width": 1200, "height": 820}}
OLDER = {
    "Names for a small sailing boat": 0.1,
    "Why bread needs salt": 1.0,
    "A birthday speech for Ada": 2.5,
    "Regular expressions, gently": 3.5,
    "Ideas for a rainy Sunday": 20,
}
QUESTION = "How does a hash table find things so quickly? A small example in Python, please."
ANSWER = """<think>They want the idea first, then code that runs. Keep it short.</think>\
A **hash table** never searches. It *computes* where a thing must be, and looks there.

1. A hash function turns the key into a number.
2. The remainder by the number of slots says which slot.
3. Only that slot is looked at.

```python
class Table:
    def __init__(self, n_slots=8):
        self.slots = [[] for _ in range(n_slots)]

    def put(self, key, value):
        slot = self.slots[hash(key) % len(self.slots)]
        slot[:] = [pair for pair in slot if pair[0] != key]
        slot.append((key, value))  # the newest is last
```

| operation | on average | at worst |
|---|--:|--:|
| look up | O(1) | O(n) |
| insert | O(1) | O(n) |
"""
STORY = """The keeper of the lighthouse collected letters that had lost their way.

> *Dear stranger, the sea is wide and I have run out of stamps.*

She read each of them **twice**: once for the words, and once for the weather in them. Then she lit the lamp, and \
answered as it turned, one flash a syllable.

By spring the ships had learned to read, and the letters began to arrive.
"""


def older_conversations() -> str:
    """A file for the page's import."""
    now_ms = int(time.time() * 1000)
    conversations = []
    for title, days in OLDER.items():
        when = now_ms - int(days * DAY_MS)
        message = {"id": "m", "parent": None, "role": "user", "content": title, "created": when}
        conversations.append({"title": title, "created": when, "updated": when, "leaf": "m", "messages": [message]})
    return json.dumps({"format": "llm_decoder.conversations", "version": 1, "conversations": conversations})


def open_page(browser: Browser, site: Site, file: Path, **options: Any) -> Page:
    page = browser.new_context(**options, locale="en-GB").new_page()
    page.goto(site.url)
    page.wait_for_selector("body[data-ready]")
    page.locator("#import-file").set_input_files(file)
    page.locator("#conversations a").nth(len(OLDER) - 1).wait_for(state="attached")
    page.locator(".toast button").last.click()
    return page


def ask(page: Page, question: str) -> None:
    page.locator("#composer-field").fill(question)
    page.keyboard.press("Enter")
    page.locator(".last .speed").wait_for()
    page.wait_for_timeout(400)


def draw_search(browser: Browser, path: Path) -> None:
    site = Site(lambda script: LLM())
    assert site.service.wait(60), site.service.failure
    context = browser.new_context(viewport={"width": 1200, "height": 840}, color_scheme="light", locale="en-GB")
    page = context.new_page()
    page.goto(site.url)
    page.wait_for_selector("body[data-ready]")
    page.locator("#close-sidebar").click()
    page.locator("#show-search").click()
    page.get_by_label("Prompt", exact=True).fill("Once upon a time there was a little")
    page.get_by_label("Most tokens").fill("20")
    page.get_by_label("Scorer").select_option("likelihood")
    page.get_by_role("button", name="Start", exact=True).click()
    page.locator(".search-winner").wait_for()
    page.locator(".search-answer").first.click()
    page.wait_for_timeout(400)
    page.screenshot(path=path)
    site.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    site = Site()
    assert site.service.wait(30), site.service.failure
    site.script.step_s = 0.001
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as playwright:
        file = Path(scratch) / "conversations.json"
        file.write_text(older_conversations())
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for scheme in ("light", "dark"):
            site.script.answer = lambda prompt: ANSWER
            page = open_page(browser, site, file, viewport=VIEWPORTS[scheme], color_scheme=scheme)
            ask(page, QUESTION)
            if scheme == "dark":
                page.locator("#show-settings").click()
                page.get_by_label("Preset", exact=True).select_option("Balanced")
                page.locator("#composer-field").focus()
                page.wait_for_timeout(400)
            page.screenshot(path=folder / f"page_{scheme}.png")
        site.script.answer = lambda prompt: STORY
        phone = {"viewport": {"width": 390, "height": 800}, "has_touch": True, "is_mobile": True}
        page = open_page(browser, site, file, **phone, color_scheme="light", device_scale_factor=1.5)
        ask(page, "Tell me a short story about a lighthouse")
        page.screenshot(path=folder / "page_phone.png")
        draw_search(browser, folder / "page_search.png")
        browser.close()
    site.close()


if __name__ == "__main__":
    main()
