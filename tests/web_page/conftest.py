"""One browser and one server for this folder; a page with an empty storage of its own for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from chromium import CHROMIUM, FLAGS

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from reader import Reader
    from scripted_site import Site


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="package")
def _site() -> Iterator[Site]:
    from scripted_site import Site

    site = Site()
    assert site.service.wait(30), site.service.failure
    yield site
    site.close()


@pytest.fixture
def site(_site: Site) -> Site:
    _site.script.reset()
    return _site


@pytest.fixture
def new_reader(browser: Browser) -> Iterator[Callable[..., Reader]]:
    """Makes readers, each with a browser of his own. None of them may see an error, a refused script, or a request to
    another origin."""
    from reader import TIMEOUT_MS, Reader

    readers: list[Reader] = []

    def make(site: Site, **options: Any) -> Reader:
        calm = {"viewport": {"width": 1280, "height": 860}, "locale": "en-GB", "reduced_motion": "reduce"}
        options = calm | options
        context = browser.new_context(**options, permissions=["clipboard-read", "clipboard-write"])
        context.set_default_timeout(TIMEOUT_MS)
        readers.append(Reader(context.new_page(), site.url))
        return readers[-1]

    yield make
    troubles = [trouble for reader in readers for trouble in reader.troubles]
    foreign = [url for reader in readers for url in reader.foreign]
    for reader in readers:
        reader.page.context.close()
    assert troubles == []
    assert foreign == []


@pytest.fixture
def reader(new_reader: Callable[..., Reader], site: Site) -> Reader:
    return new_reader(site).open()
