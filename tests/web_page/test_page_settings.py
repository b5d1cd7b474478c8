"""Sampling, the system prompt, presets."""

from __future__ import annotations

import json
from typing import Any

from reader import Reader, expect
from scripted_site import Site


def asked(reader: Reader, text: str) -> dict[str, Any]:
    """What is sent to the server with a message."""
    with reader.page.expect_request("**/page/stream") as request:
        reader.say(text)
    reader.wait()
    return json.loads(request.value.post_data or "")


def test_only_what_was_set_is_sent(reader: Reader) -> None:
    assert asked(reader, "Q") == {"messages": [{"role": "user", "content": "Q"}]}


def test_sliders_show_the_server_s_defaults(new_reader: Any, site: Site) -> None:
    reader = new_reader(site)
    session = {"needs_key": False, "csrf": None, "state": "ready", "model": "m", "max_model_len": 64}
    session["defaults"] = {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
    reader.page.route("**/page/session", lambda route: route.fulfill(json=session))
    reader.open().click("Settings")
    expect(reader.page.get_by_label("Temperature", exact=True)).to_have_value("0.6")
    expect(reader.page.get_by_label("Top k", exact=True)).to_have_value("20")


def test_a_slider_sets_what_is_asked_and_its_button_takes_it_back(reader: Reader) -> None:
    reader.click("Settings")
    temperature = reader.page.get_by_label("Temperature", exact=True)
    temperature.fill("0.35")
    expect(reader.page.get_by_label("Temperature, exact")).to_have_value("0.35")
    reader.page.get_by_label("Top k, exact").fill("40")
    reader.page.get_by_label("Top k, exact").press("Enter")
    body = asked(reader, "Q")
    assert body["temperature"] == 0.35
    assert body["top_k"] == 40
    reader.click("Temperature: back to the default")
    expect(temperature).to_have_value("1")
    assert "temperature" not in asked(reader, "Q")


def test_sliders_move_by_keys(reader: Reader) -> None:
    reader.click("Settings")
    temperature = reader.page.get_by_label("Temperature", exact=True)
    temperature.press("ArrowRight")
    expect(temperature).to_have_value("1.05")


def test_the_system_prompt_goes_first_and_stays_with_its_conversation(reader: Reader) -> None:
    reader.click("Settings")
    system = reader.page.get_by_label("System prompt")
    system.fill("Be brief.")
    body = asked(reader, "Q")
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    reader.page.reload()
    expect(system).to_have_value("Be brief.")
    reader.begin()
    system.fill("Be long.")
    reader.ask("Other")
    reader.titles.last.click()
    expect(system).to_have_value("Be brief.")


def test_a_preset_sets_all_sliders(reader: Reader) -> None:
    reader.click("Settings")
    reader.page.get_by_label("Preset", exact=True).select_option("Precise")
    expect(reader.page.get_by_label("Temperature", exact=True)).to_have_value("0")
    assert asked(reader, "Q")["temperature"] == 0
    reader.page.get_by_label("Temperature", exact=True).fill("0.5")
    expect(reader.page.get_by_label("Preset", exact=True)).to_have_value("")
    reader.page.get_by_label("Preset", exact=True).select_option("The model's own")
    assert "temperature" not in asked(reader, "Q")


def test_own_presets_can_be_saved_taken_and_deleted(reader: Reader) -> None:
    reader.click("Settings")
    preset = reader.page.get_by_label("Preset", exact=True)
    reader.page.get_by_label("System prompt").fill("You are a pirate.")
    reader.page.get_by_label("Temperature", exact=True).fill("1.5")
    reader.page.get_by_label("Save all this as a preset").fill("Pirate")
    reader.click("Save")
    expect(preset).to_have_value("Pirate")
    preset.select_option("The model's own")
    expect(reader.page.get_by_label("Temperature", exact=True)).to_have_value("1")
    reader.page.reload()
    preset.select_option("Pirate")
    expect(reader.page.get_by_label("Temperature", exact=True)).to_have_value("1.5")
    expect(reader.page.get_by_label("System prompt")).to_have_value("You are a pirate.")
    reader.click("Delete this preset")
    expect(preset.locator("option", has_text="Pirate")).to_have_count(0)


def test_a_new_conversation_begins_with_what_was_set_last(reader: Reader) -> None:
    reader.click("Settings")
    reader.page.get_by_label("Seed").fill("7")
    reader.page.get_by_label("Seed").press("Enter")
    assert asked(reader, "Q")["seed"] == 7
    reader.begin()
    assert asked(reader, "Q")["seed"] == 7


def test_what_is_set_just_before_another_conversation_is_opened_stays_with_its_own(reader: Reader) -> None:
    reader.ask("Q")
    reader.click("Settings")
    reader.page.evaluate(
        """() => {
          const seed = document.querySelector("#number-seed");
          seed.value = "7";
          seed.dispatchEvent(new Event("change", { bubbles: true }));
          document.querySelector("#new").click();
        }"""
    )
    expect(reader.questions).to_have_count(0)
    reader.titles.first.click()
    expect(reader.questions).to_have_count(1)
    assert asked(reader, "Again")["seed"] == 7
