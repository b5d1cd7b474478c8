"""Answers as they come: text, blocks, reasoning, numbers; stopped, gone on with, copied."""

from __future__ import annotations

from reader import Reader, expect
from scripted_site import Site

POEM = "First paragraph.\n\n## A heading\n\n- one\n- two\n\n```python\nprint('hi')\n```\n\nLast *words*."
LONG = "word " * 600


def test_an_answer_appears_while_it_is_written(reader: Reader, site: Site) -> None:
    site.script.answer = lambda prompt: LONG
    site.script.step_s = 0.004
    reader.say("Talk.")
    expect(reader.text).to_contain_text("word word")
    expect(reader.answer).to_have_attribute("data-state", "streaming")
    expect(reader.answer).to_have_attribute("aria-busy", "true")
    reader.press("Escape")
    expect(reader.answer).to_have_attribute("aria-busy", "false")


def test_finished_blocks_are_rendered_before_the_answer_ends(reader: Reader, site: Site) -> None:
    site.script.answer = lambda prompt: "# Title\n\n**Bold** words.\n\nA line.\n" + LONG
    site.script.step_s = 0.004
    reader.say("Talk.")
    expect(reader.text.locator("h1")).to_have_text("Title")
    expect(reader.text.locator("strong")).to_have_text("Bold")
    expect(reader.text.locator(".open-text")).to_contain_text("word word")
    assert reader.answer.get_attribute("data-state") == "streaming"
    reader.press("Escape")


def test_markdown_is_rendered(reader: Reader, site: Site) -> None:
    site.script.answer = lambda prompt: (
        POEM + "\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\n- [x] done\n- [ ] open\n\n~~gone~~ and <https://example.org/>"
    )
    reader.ask("Show all.")
    expect(reader.text.locator("h2")).to_have_text("A heading")
    expect(reader.text.locator("ul").first.locator("li")).to_have_text(["one", "two"])
    expect(reader.text.locator("pre.code .nb")).to_have_text("print")
    expect(reader.text.locator(".code-language")).to_have_text("python")
    expect(reader.text.locator("td.right")).to_have_text("2")
    expect(reader.text.locator("li.task input")).to_have_count(2)
    expect(reader.text.locator("s")).to_have_text("gone")
    link = reader.text.locator("a")
    expect(link).to_have_attribute("rel", "noopener noreferrer nofollow")
    expect(link).to_have_attribute("target", "_blank")


FORMULAS = r"""Roots of $ax^2 + bx + c = 0$, and \(i\) with $i^2 = -1$:

$$
x
= \frac{-b \pm \sqrt{b^2 - 4ac}}{2a}
$$

\[
\begin{aligned}
a + b &= \sum_{i=1}^{n} \int_0^\infty e^{-t}\,dt \\[4pt]
- c &= \begin{cases} 1 & \text{if } x > 0 \\ 0 & \text{else} \end{cases}
\end{aligned}
\]

$$\boxed{\begin{pmatrix} 1 & 0 \\ 0 & \hat{y} \end{pmatrix}} \tag{7}$$

It costs $5, not $10. $\textcolor{red}{\vec{v}} \in \mathbb{R}^3$"""


def test_formulas_are_drawn(reader: Reader, site: Site) -> None:
    site.script.answer = lambda prompt: FORMULAS
    reader.ask("Show formulas.")
    expect(reader.text.locator("math")).to_have_count(7)
    expect(reader.text).to_contain_text("It costs $5, not $10.")
    over, under = (reader.text.locator("mfrac > *").nth(i).bounding_box() for i in (0, 1))
    assert over
    assert under
    assert over["y"] + over["height"] <= under["y"] + 1
    assert abs((over["x"] + over["width"] / 2) - (under["x"] + under["width"] / 2)) < 2
    equals = [reader.text.locator("mtd.left > mo:first-child").nth(i).bounding_box() for i in (0, 1)]
    assert equals[0]
    assert equals[1]
    assert abs(equals[0]["x"] - equals[1]["x"]) < 2
    assert reader.text.locator("[mathcolor]").first.evaluate("node => getComputedStyle(node).color") == "rgb(255, 0, 0)"


def test_code_has_its_frame_while_it_is_written_and_its_measures_stay(reader: Reader, site: Site) -> None:
    code = "```python\n" + "".join(f"print({i})\n" for i in range(12)) + "```\n\n" + LONG
    site.script.answer = lambda prompt: code
    site.script.step_s = 0.004
    reader.say("Code.")
    open_code = reader.text.locator(".open-block .code-frame")
    expect(open_code.locator("pre")).to_contain_text("print(3)")
    expect(open_code.locator(".code-language")).to_have_text("python")
    finished = reader.text.locator("> .code-frame")
    expect(finished.locator("pre")).to_contain_text("print(11)")
    lines, height = reader.page.evaluate(
        """async () => {
            const { OpenText } = await import("/static/open_text.js");
            const done = document.querySelector(".content > .code-frame");
            const block = new OpenText();
            done.after(block.root);
            block.show("```python\\n" + done.querySelector("pre").textContent + "```");
            const open = block.root.querySelector('.open-block').firstElementChild;
            const heights = [done, open].map((each) => each.getBoundingClientRect().height);
            block.root.remove();
            return [open.querySelector("pre").textContent.trimEnd().split("\\n").length, heights];
        }"""
    )
    assert lines == 12
    assert height[0] == height[1]
    reader.press("Escape")


def test_a_list_a_heading_and_a_paragraph_keep_their_height_when_they_are_finished(reader: Reader, site: Site) -> None:
    blocks = ["A paragraph of words.\nA second line.", "### A heading", "1. one\n2. two\n3. three"]
    site.script.answer = lambda prompt: "\n\n".join([*blocks, "end"])
    reader.ask("Go.")
    heights = reader.page.evaluate(
        """async (blocks) => {
            const { OpenText } = await import("/static/open_text.js");
            const done = [...document.querySelectorAll(".content > :is(p, h3, ol)")];
            return blocks.map((text, at) => {
                const block = new OpenText();
                done[at].after(block.root);
                block.show(text);
                const open = block.root.querySelector(".open-block").firstElementChild;
                const heights = [done[at], open].map((each) => each.offsetHeight);
                block.root.remove();
                return heights;
            });
        }""",
        blocks,
    )
    for finished, while_open in heights:
        assert abs(finished - while_open) <= 10, heights


def test_a_table_has_its_shape_while_it_is_written(reader: Reader, site: Site) -> None:
    head = "| name | n |\n|---|--:|\n| first | 1 |\n"
    site.script.answer = lambda prompt: head + "| more | 2 |\n" * 100
    site.script.step_s = 0.003
    reader.say("Table.")
    table = reader.text.locator(".open-block table")
    expect(table.locator("th")).to_have_text(["name", "n"])
    expect(table.locator("td").nth(2)).to_have_text("more")
    expect(table.locator("td").nth(1)).to_have_class("right")
    heights = "(table) => [...table.rows].slice(0, 2).map((row) => row.offsetHeight)"
    open_heights = table.evaluate(heights)
    site.script.step_s = 0.0
    reader.wait()
    expect(reader.text.locator("tr")).to_have_count(102)
    assert reader.text.locator("> .table-frame table").first.evaluate(heights) == open_heights


def test_stop_ends_the_answer_and_frees_the_engine(reader: Reader, site: Site) -> None:
    site.script.answer = lambda prompt: LONG
    site.script.step_s = 0.004
    reader.say("Talk.")
    expect(reader.text).to_contain_text("word")
    reader.click("Stop")
    expect(reader.answer).to_have_attribute("data-state", "stopped")
    expect(reader.note).to_have_text("Stopped.")
    expect(reader.text).to_contain_text("word")
    expect(reader.button("Send")).to_be_visible()
    assert site.is_idle()


def test_a_stopped_answer_goes_on_where_it_ended(reader: Reader, site: Site) -> None:
    site.script.answer = lambda prompt: "One.\n\nTwo.\n\n" + "Three. " * 60
    site.script.step_s = 0.003
    reader.say("Count.")
    expect(reader.text).to_contain_text("Three.")
    reader.press("Escape")
    expect(reader.answer).to_have_attribute("data-state", "stopped")
    begun = reader.text.inner_text()
    site.script.step_s = 0.0
    reader.click("Continue").wait()
    expect(reader.answers).to_have_count(1)
    text = reader.text.inner_text()
    assert text.startswith(begun.rstrip()[:20])
    assert text.count("Three.") == 60
    expect(reader.text.locator("> p")).to_have_count(3)


def test_an_answer_that_ends_for_its_length_says_so_and_can_go_on(reader: Reader, site: Site) -> None:
    site.script.answer = lambda prompt: "Nine lives."
    reader.click("Settings")
    reader.page.get_by_label("Longest answer").fill("4")
    reader.page.get_by_label("Longest answer").press("Enter")
    reader.ask("Go.")
    expect(reader.text).to_have_text("Nine")
    expect(reader.note).to_contain_text("length")
    reader.click("Continue").wait()
    expect(reader.text).to_have_text("Nine liv")


def test_characters_outside_the_first_plane_do_not_shift_the_blocks(reader: Reader, site: Site) -> None:
    reader.page.route("**/page/render", lambda route: route.abort())  # nobody mends it at the end
    site.script.answer = lambda prompt: "😀😀😀 grin\n\n𝒳 set\n\nend 🦊"
    reader.ask("Smile.")
    expect(reader.text.locator("> p")).to_have_text(["😀😀😀 grin", "𝒳 set", "end 🦊"])
    expect(reader.text.locator(".open-text")).to_be_hidden()


def test_speed_tokens_and_context_stand_below_an_answer(reader: Reader, site: Site) -> None:
    site.script.step_s = 0.002
    reader.ask("Well?")
    stats = reader.answer.locator(".stats")
    expect(stats).to_contain_text("tokens/s")
    expect(stats).to_contain_text("5 tokens")  # four bytes and the end
    expect(stats).to_contain_text("to the first")
    gauge = stats.get_by_role("img")
    expect(gauge).to_have_attribute("aria-label", "29 of 4,096 tokens of context")  # 24 of the prompt


def test_the_answer_can_be_copied_as_it_was_written(reader: Reader, site: Site) -> None:
    site.script.answer = lambda prompt: POEM
    reader.ask("Poem.").click("Copy", reader.answer)
    expect(reader.button("Copied", reader.answer)).to_be_visible()
    assert reader.page.evaluate("navigator.clipboard.readText()") == POEM


def test_code_can_be_copied_alone(reader: Reader, site: Site) -> None:
    site.script.answer = lambda prompt: POEM
    reader.ask("Poem.")
    reader.text.locator(".code-copy").click()
    expect(reader.text.locator(".code-copy")).to_have_text("Copied")
    assert reader.page.evaluate("navigator.clipboard.readText()").strip() == "print('hi')"


def test_copying_works_where_the_browser_keeps_its_clipboard_from_plain_http(reader: Reader, site: Site) -> None:
    reader.page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    reader.ask("Well?").click("Copy", reader.answer)
    expect(reader.button("Copied", reader.answer)).to_be_visible()
    reader.field.focus()
    reader.press("Control+v")
    expect(reader.field).to_have_value("Yes.")


def test_reasoning_is_folded_away_and_can_be_opened(reader: Reader, site: Site) -> None:
    site.script.answer = lambda prompt: "<think>Let me see: 2 + 2 <b>is</b> 4.</think>Four."
    reader.ask("2 + 2?")
    expect(reader.text).to_have_text("Four.")
    thought = reader.answer.locator(".thought")
    expect(thought).to_be_hidden()
    expect(reader.answer.locator("summary")).to_contain_text("Thought for")
    reader.answer.locator("summary").click()
    expect(thought).to_have_text("Let me see: 2 + 2 <b>is</b> 4.")
    site.script.answer = lambda prompt: "Five."
    reader.ask("Sure?")
    assert "Let me see" not in site.script.asked[-1]


def test_the_end_of_an_answer_is_told_to_those_who_hear_the_page(reader: Reader) -> None:
    reader.ask("Well?")
    expect(reader.page.locator("#announcements")).to_have_text("Answer: Yes.")


def test_what_grows_stays_in_view_until_the_reader_scrolls_away(reader: Reader, site: Site) -> None:
    site.script.answer = lambda prompt: "line\n\n" * 400
    site.script.step_s = 0.003
    reader.say("Talk.")
    expect(reader.text.locator("> p").nth(60)).to_be_attached()
    below = """() => {
        const { scrollHeight, scrollTop, clientHeight } = document.querySelector("#scroller");
        return scrollHeight - scrollTop - clientHeight;
    }"""
    assert reader.page.evaluate(below) < 64
    reader.page.mouse.move(640, 300)
    reader.page.mouse.wheel(0, -600)
    expect(reader.button("To the latest message")).to_be_visible()
    n_before = reader.text.locator("> p").count()
    expect(reader.text.locator("> p").nth(n_before + 20)).to_be_attached()
    assert reader.page.evaluate(below) > 500
    reader.click("To the latest message")
    expect(reader.button("To the latest message")).to_be_hidden()
    assert reader.page.evaluate(below) < 64
    reader.press("Escape")
