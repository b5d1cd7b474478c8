"""Somebody who reads the page: what he does and what he sees, in his words."""

from __future__ import annotations

from typing import Any

import pytest
from chromium import CHROMIUM

pytest.importorskip("playwright.sync_api", reason="needs playwright")
if CHROMIUM is None:
    pytest.skip("needs chromium", allow_module_level=True)

from playwright.sync_api import Locator, Page, expect

# A machine that is busy with other things takes its time.
TIMEOUT_MS = 30_000
expect.set_options(timeout=TIMEOUT_MS)

__all__ = ["TIMEOUT_MS", "Page", "Reader", "expect"]


class Reader:
    def __init__(self, page: Page, url: str) -> None:
        self.page = page
        self.url = url
        self.troubles: list[str] = []
        self.foreign: list[str] = []
        page.on("console", self._note_console)
        page.on("pageerror", lambda error: self.troubles.append(f"exception: {error}"))
        page.on("dialog", self._note_dialog)
        page.on("request", lambda request: self._note_request(request.url))

    def _note_console(self, message: Any) -> None:
        # The browser reports each status of 400 and more here; what the page makes of them is for the tests.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.troubles.append(message.text)

    def _note_dialog(self, dialog: Any) -> None:
        self.troubles.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _note_request(self, url: str) -> None:
        if not url.startswith((self.url, "data:", "blob:")):
            self.foreign.append(url)

    def open(self, fragment: str = "") -> Reader:
        self.page.goto(self.url + fragment)
        self.page.wait_for_selector("body[data-ready]")
        return self

    # -- what he sees

    @property
    def answers(self) -> Locator:
        return self.page.locator(".message.assistant")

    @property
    def questions(self) -> Locator:
        return self.page.locator(".message.user")

    @property
    def answer(self) -> Locator:
        return self.answers.last

    @property
    def text(self) -> Locator:
        """What the last answer says."""
        return self.answer.locator(".content")

    @property
    def note(self) -> Locator:
        return self.answer.locator(".note")

    @property
    def toast(self) -> Locator:
        return self.page.locator(".toast").last

    @property
    def titles(self) -> Locator:
        return self.page.locator("#conversations a")

    @property
    def field(self) -> Locator:
        return self.page.get_by_label("Message", exact=True)

    def button(self, name: str, within: Locator | None = None) -> Locator:
        return (within or self.page).get_by_role("button", name=name, exact=True)

    # -- what he does

    def say(self, text: str) -> Reader:
        """Sends a message; does not wait for the answer."""
        n_before = self.questions.count()
        self.field.fill(text)
        self.field.press("Enter")
        expect(self.questions).to_have_count(n_before + 1)
        expect(self.page.locator(".message.assistant.last")).to_be_visible()
        return self

    def begin(self, within: Locator | None = None) -> Reader:
        """A new conversation, once it is there."""
        self.button("New conversation", within).first.click()
        expect(self.questions).to_have_count(0)
        return self

    def ask(self, text: str) -> Reader:
        self.say(text)
        return self.wait()

    def wait(self) -> Reader:
        """Until the last answer is whole."""
        expect(self.answer).to_have_attribute("data-state", "done", timeout=30_000)
        return self

    def press(self, keys: str) -> Reader:
        self.page.keyboard.press(keys)
        return self

    def click(self, name: str, within: Locator | None = None) -> Reader:
        self.button(name, within).click()
        return self
