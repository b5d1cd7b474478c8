// The search beside the chat: what it is asked, its tree as it grows, its answers, and what can be done with a token.
import { announce, byId, element } from "./dom.js";
import { saveFile } from "./files.js";
import { draw, svgFile } from "./search_picture.js";
import { SearchRun } from "./search_run.js";
import { complain } from "./toasts.js";

const REDRAW_MS = 80;
const NUMBERS = ["width", "n", "max_tokens", "length_penalty", "alpha"];
const SCORES = { beam_score: "beam", rerank_score: "rerank", final_score: "final" };
const STATES = { live: "went on", finished: "an answer", pruned: "let go" };
const REASONS = {
  stop: "the answer ends here",
  length: "as long as an answer may be",
  outscored: "others scored better",
  displaced: "better answers took its place",
  duplicate: "another beam says the same",
  end: "the search ended before its turn",
  "no pages": "there was no memory for it",
};
const number = new Intl.NumberFormat("en");

export class SearchView {
  /** onChat: shows the chat. */
  constructor(chat, { onChat }) {
    this.chat = chat;
    this.onChat = onChat;
    this.root = byId("search-view");
    this.form = byId("search-form");
    this.prompt = byId("search-prompt");
    this.tree = byId("search-tree");
    this.run = null;
    this.chosen = null;
    this.model = "";
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.start();
    });
    this.form.addEventListener("change", () => this.#showForm());
    this.prompt.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.form.requestSubmit();
    });
    byId("search-stop").addEventListener("click", () => this.stop());
    byId("search-lines").addEventListener("click", () => {
      saveFile(this.run.lines(), "application/jsonl", "search.jsonl");
    });
    byId("search-svg").addEventListener("click", () => {
      saveFile(svgFile(this.tree.querySelector("svg")), "image/svg+xml", "search.svg");
    });
    this.tree.addEventListener("click", (event) => {
      const cell = event.target.closest("[data-node]");
      if (cell) this.#choose(Number(cell.dataset.node));
    });
    this.tree.addEventListener("keydown", (event) => this.#walk(event));
    this.#showForm();
    this.#showRun();
  }

  /** What the server is: its model, and whether it has a reranker. */
  meet({ model, has_reranker: hasReranker }) {
    this.model = model ?? "";
    const option = this.form.elements.scorer.querySelector('[value="reranker"]');
    option.hidden = option.disabled = !hasReranker;
  }

  get isRunning() {
    return this.run?.isRunning ?? false;
  }

  focus() {
    this.prompt.focus();
  }

  async start() {
    if (this.isRunning) return;
    const isChat = this.form.elements.chat.checked;
    const prompt = this.prompt.value;
    if (!isChat && prompt === "") return this.focus();
    await this.chat.opening;
    const leaf = this.chat.conversation?.leaf ?? null;
    const messages = isChat && this.chat.messagesWith(prompt.trim());
    const request = { ...(isChat ? { messages } : { prompt }), ...this.#params() };
    this.chosen = null;
    this.axis = null;
    const run = new SearchRun({ request, prompt, model: this.model, onChange: () => this.#later() });
    Object.assign(run, { isChat, leaf, conversation: this.chat.conversation });
    this.run = run;
    try {
      await run.run();
      announce(run.candidates.length ? `The best answer: ${run.candidates[0].text}` : "The search was stopped.");
    } catch (error) {
      complain(error);
    }
  }

  stop() {
    this.run.stop();
  }

  // -- the form

  #params() {
    const { elements } = this.form;
    const params = { method: elements.method.value };
    for (const name of NUMBERS) if (!elements[name].disabled) params[name] = elements[name].valueAsNumber;
    if (elements.scorer.value !== "logprob") params.scorer = elements.scorer.value;
    return params;
  }

  /** What has no part in this search cannot be set. */
  #showForm() {
    const { elements } = this.form;
    elements.alpha.disabled = elements.scorer.value === "logprob";
    elements.n.max = elements.width.value;
    if (elements.n.valueAsNumber > elements.width.valueAsNumber) elements.n.value = elements.width.value;
  }

  // -- what is shown

  /** A search tells more often than a screen shows, and a large tree takes long to draw. */
  #later() {
    if (!this.isRunning) {
      clearTimeout(this.timer);
      this.timer = null;
      return this.#showRun();
    }
    this.timer ??= setTimeout(() => {
      const begun = performance.now();
      this.#showRun();
      this.timer = null;
      this.wait = Math.max(REDRAW_MS, 3 * (performance.now() - begun));
    }, this.wait ?? REDRAW_MS);
  }

  #showRun() {
    const { run, isRunning } = this;
    byId("search-start").hidden = isRunning;
    byId("search-stop").hidden = !isRunning;
    byId("search-lines").disabled = isRunning || !run?.candidates.length;
    byId("search-svg").disabled = isRunning || !run || run.nodes.length < 2;
    byId("search-begin").hidden = run !== null;
    byId("search-result").hidden = run === null;
    if (!run) return;
    byId("search-tally").textContent = countOf(run);
    this.#showTree();
    this.#showAnswers();
    this.#showNode();
  }

  #showTree() {
    const { tree, run } = this;
    const wasAtEnd = tree.scrollTop + tree.clientHeight > tree.scrollHeight - 40;
    const { svg, axis } = draw(run, this.chosen);
    tree.replaceChildren(svg);
    // What grows to the left of the prompt moves nothing that is being looked at.
    if (this.axis === null) tree.scrollLeft = axis - tree.clientWidth / 2;
    else tree.scrollLeft += axis - this.axis;
    this.axis = axis;
    if (run.isRunning && wasAtEnd) tree.scrollTop = tree.scrollHeight;
  }

  #showAnswers() {
    const { run } = this;
    const live = run.live.map(({ leaf, score }) => ({ tree_leaf: leaf, text: run.textTo(leaf), beam_score: score }));
    const isOver = run.candidates.length > 0;
    byId("search-answers-title").textContent = isOver ? "Answers" : "Beams";
    const rows = (isOver ? run.candidates : live).map((answer, rank) => {
      const scores = Object.entries(SCORES).filter(([name]) => Number.isFinite(answer[name]));
      const isBest = isOver && rank === 0;
      return element(
        "li",
        { class: isBest ? "is-best" : null },
        element(
          "button",
          {
            type: "button",
            class: "search-answer",
            disabled: answer.tree_leaf === null,
            on: { click: () => this.#choose(answer.tree_leaf, true) },
          },
          element(
            "span",
            { class: "search-scores" },
            isBest && element("span", { class: "search-winner" }, "★ Best"),
            ...scores.map(([name, label]) =>
              element("span", { title: name }, `${isOver ? label : "sum"} `, element("b", {}, answer[name].toFixed(3))),
            ),
          ),
          element("span", { class: "search-text", dir: "auto" }, answer.text.trim() || "(no text)"),
        ),
      );
    });
    const focused = [...byId("search-answers").querySelectorAll("button")].indexOf(document.activeElement);
    byId("search-answers").replaceChildren(...rows);
    if (focused >= 0) byId("search-answers").querySelectorAll("button")[focused]?.focus();
  }

  // -- one token

  #choose(id, isFar = false) {
    this.chosen = id;
    this.#mark(isFar);
    this.#showNode();
  }

  #mark(isFar) {
    this.tree.querySelector(".is-chosen")?.classList.remove("is-chosen");
    const cell = this.tree.querySelector(`[data-node="${this.chosen}"]`);
    cell?.classList.add("is-chosen");
    if (isFar) cell?.scrollIntoView({ block: "center", inline: "center" });
    else cell?.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  #showNode() {
    const { run, chosen } = this;
    const place = byId("search-node");
    place.hidden = chosen === null;
    if (chosen === null) return;
    const node = run.nodes[chosen];
    const text = run.textTo(chosen);
    const reason = REASONS[node.reason] ?? node.reason;
    const facts = chosen === 0 ? [] : [
      ["log probability", `${node.logprob.toFixed(3)} (${(100 * Math.exp(node.logprob)).toPrecision(3)} %)`],
      ["sum from the root", node.cum_logprob.toFixed(3)],
      ["step", number.format(node.step)],
      ["state", reason ? `${STATES[node.state]}: ${reason}` : STATES[node.state]],
    ];
    place.replaceChildren(
      element("h2", {}, "This token"),
      element(
        "p",
        { class: "search-path", dir: "auto" },
        element("span", {}, run.isChat ? "" : run.prompt),
        element("strong", {}, text),
      ),
      element("dl", {}, ...facts.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)])),
      !run.isRunning &&
        element(
          "button",
          { type: "button", class: "button is-wide", on: { click: () => this.#goOn(node, text) } },
          "Continue from here",
        ),
    );
  }

  /** A text goes on as the prompt of another search, a chat in the chat. */
  async #goOn(node, text) {
    const { run, chat } = this;
    if (!run.isChat) {
      this.form.elements.chat.checked = false;
      this.prompt.value = run.prompt + text;
      this.focus();
      return;
    }
    await chat.opening;
    const isSame = run.conversation === chat.conversation && run.leaf === (chat.conversation?.leaf ?? null);
    if (!isSame || chat.isBusy) return complain(new Error("The chat has gone on since this search. Start it again."));
    this.onChat();
    await chat.take(run.prompt.trim(), text, node.state === "finished" && node.reason === "stop");
  }

  /** Up to what came before, down to what came behind, left and right to what stood beside it. */
  #walk(event) {
    const { run } = this;
    if (!run || !event.key.startsWith("Arrow") || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    if (this.chosen === null) return this.#choose(0);
    const node = run.nodes[this.chosen];
    // As they are drawn: from the left to the right.
    const across = (parent) => {
      const found = run.nodes.filter((each) => each.parent === parent).map(({ id }) => id);
      const left = (id) => this.tree.querySelector(`[data-node="${id}"]`).getBoundingClientRect().left;
      return found.sort((a, b) => left(a) - left(b));
    };
    let next = null;
    if (event.key === "ArrowUp") next = node.parent >= 0 ? node.parent : null;
    else if (event.key === "ArrowDown") {
      const best = new Set(run.candidates.length ? run.path(run.candidates[0].tree_leaf ?? 0).map(({ id }) => id) : []);
      const below = across(node.id);
      next = below.find((id) => best.has(id)) ?? below[0];
    } else {
      const beside = across(node.parent);
      next = beside[beside.indexOf(node.id) + (event.key === "ArrowLeft" ? -1 : 1)];
    }
    if (next !== null && next !== undefined) this.#choose(next);
  }
}

function countOf(run) {
  const counts = [
    `${number.format(run.nodes.length - 1)} tokens looked at`,
    run.isRunning && `step ${number.format(run.step)}`,
    run.isRunning && run.nFinished > 0 && `${run.nFinished} finished`,
    run.isStopped && "stopped",
  ];
  return counts.filter(Boolean).join(" · ");
}
