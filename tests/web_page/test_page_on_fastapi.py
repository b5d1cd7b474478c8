"""The same page, shown by the FastAPI server."""

from __future__ import annotations

from collections.abc import Callable

from reader import Reader, expect
from scripted_site import ApiSite


def test_the_page_works_on_the_fastapi_server_too(new_reader: Callable[..., Reader]) -> None:
    site = ApiSite(api_keys=("sesame",))
    try:
        site.script.answer = lambda prompt: "**One.**\n\nTwo.\n\n" + "Three. " * 60
        site.script.step_s = 0.004
        reader = new_reader(site).open()
        reader.page.get_by_label("API key").fill("sesame")
        reader.press("Enter")
        expect(reader.field).to_be_focused()
        reader.say("Count.")
        expect(reader.text.locator("strong")).to_have_text("One.")
        reader.page.reload()
        expect(reader.text).to_contain_text("Three.")
        reader.click("Stop")
        expect(reader.answer).to_have_attribute("data-state", "stopped")
        assert site.is_idle()
        site.script.step_s = 0.0
        reader.click("Continue").wait()
        assert reader.text.inner_text().count("Three.") == 60
        expect(reader.answer.locator(".stats")).to_contain_text("tokens/s")
    finally:
        site.close()
