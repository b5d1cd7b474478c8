"""The search beside the chat: a tree that grows, answers with their scores, and what can be done with a token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from reader import Locator, Reader, expect
from scripted_site import ApiSite, Script, Site

from llm_decoder.errors import ModelNotFoundError
from llm_decoder.llm import LLM
from llm_decoder.search.run_file import read_runs

PROMPT = "Once upon a time"


class LikesDogs:
    """A reranker of a simple mind."""

    def score(self, query: str, documents: Sequence[str]) -> np.ndarray:
        return np.array([9.0 if "dog" in text else 0.0 for text in documents], np.float32)


def open_stories(script: Script) -> LLM:
    return LLM(reranker=LikesDogs())


@pytest.fixture(scope="module")
def stories() -> Iterator[Site]:
    """The embedded model."""
    site = Site(open_stories)
    assert site.service.wait(60), site.service.failure
    yield site
    site.close()


@pytest.fixture
def at_stories(new_reader: Callable[..., Reader], stories: Site) -> Reader:
    reader = new_reader(stories).open()
    expect(reader.page.locator("#model")).not_to_be_empty()
    return reader.click("Search")


def prompt_of(reader: Reader) -> Locator:
    return reader.page.get_by_label("Prompt", exact=True)


def start(reader: Reader, prompt: str = PROMPT, **fields: str) -> Reader:
    for label, value in fields.items():
        field = reader.page.locator("#search-form").get_by_label(label.replace("_", " "), exact=True)
        if field.evaluate("node => node.tagName") == "SELECT":
            field.select_option(label=value)
        else:
            field.fill(value)
    prompt_of(reader).fill(prompt)
    return reader.click("Start")


def search(reader: Reader, prompt: str = PROMPT, **fields: str) -> Reader:
    """A search, until it is over."""
    start(reader, prompt, **fields)
    expect(answers(reader).first).to_contain_text("Best")
    expect(reader.button("Start")).to_be_visible()
    return reader


def answers(reader: Reader) -> Locator:
    return reader.page.locator("#search-answers li")


def tokens(reader: Reader) -> Locator:
    return reader.page.locator("#search-tree [data-node]")


def details(reader: Reader) -> Locator:
    return reader.page.get_by_role("region", name="The chosen token")


def saved(reader: Reader, button: str, folder: Path) -> str:
    with reader.page.expect_download() as download:
        reader.click(button)
    file = folder / download.value.suggested_filename
    download.value.save_as(file)
    return file.read_text()


def test_a_search_shows_its_tree_and_its_answers_the_best_marked(at_stories: Reader) -> None:
    reader = search(at_stories, Width="3", Answers="2", Most_tokens="6")
    expect(answers(reader)).to_have_count(2)
    expect(answers(reader).first).to_contain_text("★ Best")
    expect(answers(reader).last).not_to_contain_text("Best")
    expect(answers(reader).first).to_contain_text("beam -0.")
    assert tokens(reader).count() > 12
    assert reader.page.locator("#search-tree path.s-best").count() > 0
    assert reader.page.locator("#search-tree path.s-pale").count() > 0


def test_a_search_runs_on_the_other_server_too(new_reader: Callable[..., Reader]) -> None:
    site = ApiSite(open_stories)
    assert site.service.wait(60), site.service.failure
    try:
        reader = search(new_reader(site).open().click("Search"), Width="2", Answers="2", Most_tokens="4")
        expect(answers(reader)).to_have_count(2)
    finally:
        site.close()


def test_a_reranker_has_a_say_and_both_scores_are_shown(at_stories: Reader) -> None:
    fields = {"Width": "16", "Answers": "2", "Most_tokens": "16", "Scorer": "Reranker", "Its_weight": "0.8"}
    reader = search(at_stories, "Once upon a time there was a little", **fields)
    first = answers(reader).first
    for name in ("beam", "rerank", "final"):
        expect(first.locator(".search-scores")).to_contain_text(name)
    expect(reader.page.locator("#search-tree text.is-strong")).to_have_count(1)


def test_a_server_without_a_reranker_offers_none(
    new_reader: Callable[..., Reader], site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_here() -> Path:
        raise ModelNotFoundError("[reranker] this installation has none")

    monkeypatch.setattr("llm_decoder.companions.embedded_reranker", none_here)
    reader = new_reader(site).open().click("Search")
    expect(reader.page.locator("#model")).to_have_text("scripted-1b")
    scorers = reader.page.get_by_label("Scorer").get_by_role("option")
    expect(scorers).to_have_text(["None", "Likelihood"])


@pytest.mark.parametrize("method", ["By steps", "Best of samples"])
def test_the_other_methods_answer_too(at_stories: Reader, method: str) -> None:
    reader = search(at_stories, Method=method, Width="2", Answers="2", Most_tokens="5")
    expect(answers(reader).first).to_contain_text("beam -")


def test_a_token_tells_its_way_from_the_prompt_and_the_search_goes_on_from_it(at_stories: Reader) -> None:
    reader = search(at_stories, Width="2", Answers="1", Most_tokens="4")
    tokens(reader).filter(has_text="there").first.click()
    expect(details(reader)).to_contain_text(f"{PROMPT}")
    expect(details(reader)).to_contain_text("log probability")
    expect(details(reader)).to_contain_text("sum from the root")
    shown = details(reader).locator(".search-path").inner_text()
    assert shown.startswith(PROMPT)
    assert shown.endswith("there")
    reader.click("Continue from here")
    expect(prompt_of(reader)).to_have_value(shown)
    expect(prompt_of(reader)).to_be_focused()


def test_a_pruned_token_says_why_it_was_let_go(at_stories: Reader) -> None:
    reader = search(at_stories, Width="3", Answers="1", Most_tokens="5")
    newest = tokens(reader).evaluate_all("nodes => Math.max(...nodes.map((node) => node.dataset.node))")
    reader.page.locator(f'#search-tree [data-node="{newest}"]').click()
    expect(details(reader)).to_contain_text("let go")
    expect(details(reader)).to_contain_text("before its turn")


def test_arrow_keys_go_from_token_to_token(at_stories: Reader) -> None:
    reader = search(at_stories, Width="2", Answers="1", Most_tokens="4")
    reader.page.get_by_role("application").focus()
    chosen = reader.page.locator("#search-tree .is-chosen")
    reader.press("ArrowDown")
    expect(chosen).to_have_attribute("data-node", "0")
    reader.press("ArrowDown")
    first = chosen.get_attribute("data-node")
    assert first != "0"
    reader.press("ArrowRight").press("ArrowLeft").press("ArrowUp")
    expect(chosen).to_have_attribute("data-node", "0")


def test_the_file_of_a_search_is_what_the_library_reads(at_stories: Reader, tmp_path: Path) -> None:
    reader = search(at_stories, Width="3", Answers="2", Most_tokens="5", Scorer="Likelihood")
    runs, problems = read_runs(saved(reader, "JSONL", tmp_path).splitlines(), "search.jsonl")
    assert problems == []
    (run,) = runs
    assert run.header["prompt"] == PROMPT
    assert run.header["params"] | {"width": 3, "n": 2, "scorer": "likelihood"} == run.header["params"]
    assert len(run.header["prompt_hash"]) == 64
    assert len(run.tree) == tokens(reader).count()
    assert [set(candidate) >= {"beam_score", "rerank_score", "final_score"} for candidate in run.candidates] == [
        True
    ] * 2
    best = "".join(run.texts[node.id] for node in run.tree.path(run.candidates[0]["leaf"]))
    assert best == run.candidates[0]["text"]


def test_the_picture_can_be_kept_and_has_its_colours_in_it(at_stories: Reader, tmp_path: Path) -> None:
    reader = search(at_stories, Width="2", Answers="1", Most_tokens="4")
    picture = saved(reader, "SVG", tmp_path)
    assert picture.startswith("<svg")
    assert "rgb(" in picture
    assert "class=" not in picture
    assert "there" in picture


def test_a_search_can_be_stopped_and_keeps_what_it_has_seen(at_stories: Reader) -> None:
    reader = start(at_stories, Width="8", Answers="1", Most_tokens="400")
    expect(tokens(reader).nth(30)).to_be_attached()
    reader.press("Escape")
    expect(reader.button("Start")).to_be_visible()
    expect(reader.page.locator("#search-tally")).to_contain_text("stopped")
    expect(reader.button("JSONL")).to_be_disabled()
    assert tokens(reader).count() > 30
    start(reader, Width="1", Answers="1", Most_tokens="2")
    expect(answers(reader).first).to_contain_text("Best")


def test_what_the_server_refuses_is_said(at_stories: Reader) -> None:
    reader = start(at_stories, "A word. " * 1000)
    expect(reader.toast).to_contain_text("1024 tokens")
    expect(reader.button("Start")).to_be_visible()


def test_a_search_in_the_conversation_goes_on_in_it(new_reader: Callable[..., Reader], site: Site) -> None:
    site.script.answer = lambda prompt: "Yes, it is." if "sure" in prompt else "It is so."
    reader = new_reader(site).open().ask("Is it?").click("Search")
    reader.page.get_by_label("In this conversation").check()
    search(reader, "Are you sure?", Width="1", Answers="1", Most_tokens="40")
    assert site.script.asked[-1].split("\n") == ["<user>Is it?", "<assistant>It is so.", "<user>Are you sure?", ""]
    tokens(reader).filter(has_text=",").first.click()
    reader.click("Continue from here").wait()
    expect(reader.answers).to_have_count(2)
    expect(reader.questions.last).to_contain_text("Are you sure?")
    expect(reader.text).to_have_text("Yes, it is.")


def test_what_a_model_writes_is_text_and_no_markup(new_reader: Callable[..., Reader], site: Site) -> None:
    evil = "<img src=x onerror=alert(1)></svg><script>alert(2)</script>"
    site.script.answer = lambda prompt: evil
    reader = new_reader(site).open().click("Search")
    reader.page.get_by_label("In this conversation").check()
    search(reader, evil, Width="1", Answers="1", Most_tokens="80")
    answers(reader).first.get_by_role("button").click()
    expect(answers(reader).first.locator(".search-text")).to_have_text(evil)
    expect(details(reader).locator("strong")).to_have_text(evil)
    assert reader.page.locator("#search-view :is(img, script)").count() == 0


def test_a_phone_shows_the_search_without_scrolling_aside(new_reader: Callable[..., Reader], stories: Site) -> None:
    reader = new_reader(stories, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True).open()
    search(reader.click("Search"), Width="4", Answers="2", Most_tokens="8")
    assert reader.page.evaluate("document.documentElement.scrollWidth") == 390
    answers(reader).first.scroll_into_view_if_needed()
    expect(answers(reader).first).to_be_in_viewport()


def test_the_views_change_by_a_key_and_a_conversation_brings_the_chat_back(reader: Reader) -> None:
    reader.ask("First")
    reader.press("Alt+s")
    expect(prompt_of(reader)).to_be_focused()
    expect(reader.button("Search")).to_have_attribute("aria-pressed", "true")
    reader.press("Alt+s")
    expect(reader.field).to_be_focused()
    reader.press("Alt+s").click("New conversation", reader.page.locator("#sidebar"))
    expect(reader.field).to_be_visible()
