// One message on the page.
import { blockNodes } from "./blocks.js";
import { announce, copyText, element, icon, iconButton } from "./dom.js";
import { OpenText } from "./open_text.js";
import { plain, tell } from "./toasts.js";

const number = new Intl.NumberFormat("en");
const rate = new Intl.NumberFormat("en", { maximumFractionDigits: 1 });
const shortly = (value) => (value < 1 ? `${Math.max(1, Math.round(value * 1000))} ms` : `${rate.format(value)} s`);

export class MessageView {
  /** chat: what the buttons act on. onRemoved(bringBack): a message was taken away. */
  constructor(message, chat, onRemoved) {
    this.message = message;
    this.chat = chat;
    this.onRemoved = onRemoved;
    this.isAnswer = message.role === "assistant";
    this.nShown = 0;
    this.version = -1;
    this.#build();
  }

  #build() {
    const { message, chat, isAnswer } = this;
    this.content = element("div", isAnswer ? { class: "content prose" } : { class: "content bubble", dir: "auto" });
    this.note = element("p", { class: "note", hidden: true });
    this.tools = element("div", { class: "tools", role: "group", "aria-label": "What to do with it" });
    this.retry = element("button", { type: "button", class: "button retry", on: { click: () => this.#tryAgain() } });
    this.stats = element("div", { class: "stats" });
    this.versions = element("div", { class: "versions", role: "group", "aria-label": "Versions of this message" });
    this.previous = iconButton("left", "Previous version", () => chat.walk(message.id, -1));
    this.next = iconButton("right", "Next version", () => chat.walk(message.id, 1));
    this.place = element("span", { class: "place" });
    this.versions.append(this.previous, this.place, this.next);
    this.copy = iconButton("copy", "Copy", () => this.#copy());
    const again = isAnswer ? "Regenerate" : "Answer this";
    this.regenerate = iconButton("again", again, () => chat.regenerate(message.id));
    this.goOn = isAnswer && iconButton("continue", "Continue", () => chat.goOn(message.id));
    this.editButton = iconButton("edit", "Edit", () => this.edit());
    this.remove = iconButton("delete", "Delete", async () => this.onRemoved(await chat.removeMessage(message.id)));
    this.tools.append(
      ...[this.versions, this.copy, this.editButton, this.regenerate, this.goOn, this.remove].filter(Boolean),
    );
    const heading = element("h2", { class: "visually-hidden" }, isAnswer ? "Answer" : "You");
    this.root = element("article", { class: `message ${message.role}`, "data-id": message.id, tabindex: "-1" });
    this.root.append(heading);
    if (isAnswer) {
      this.#buildReasoning();
      this.openText = new OpenText();
      this.waiting = element("span", { class: "waiting", "aria-hidden": "true" });
      this.content.append(this.openText.root, this.waiting);
    }
    this.root.append(this.content, this.note, this.retry, element("footer", {}, this.tools, this.stats));
  }

  #buildReasoning() {
    this.thoughtLabel = element("span", {}, "Thinking");
    this.thoughtText = document.createTextNode("");
    this.thought = element("div", { class: "thought", dir: "auto" }, this.thoughtText);
    this.reasoning = element(
      "details",
      { class: "reasoning", hidden: true },
      element("summary", {}, icon("chevron"), this.thoughtLabel),
      this.thought,
    );
    this.root.append(this.reasoning);
  }

  /** Brings the page up to the message. run: what writes it now, or null; isBusy: something is being written. */
  update({ run = null, isBusy = false, siblings, isLast = false }) {
    const { message } = this;
    this.root.dataset.state = message.state;
    this.root.classList.toggle("last", isLast);
    this.root.setAttribute("aria-busy", String(message.state === "streaming"));
    this.#updateVersions(siblings, isBusy);
    this.updateText(run);
    for (const button of [this.editButton, this.remove, this.regenerate, this.goOn].filter(Boolean)) {
      button.disabled = isBusy;
    }
    if (!this.isAnswer) this.regenerate.hidden = !isLast;
    if (this.goOn) this.goOn.hidden = !isLast || message.content === "";
    this.copy.hidden = this.editButton.hidden = message.content === "";
    this.retry.hidden = !isLast || isBusy || !message.error;
    this.retry.textContent = this.#isCutOff ? "Go on from here" : "Try again";
    this.#updateStats();
  }

  /** Whether the server is fine with what was written, and only the connection was lost. */
  get #isCutOff() {
    return this.message.state === "stopped";
  }

  #tryAgain() {
    if (this.#isCutOff) this.chat.goOn(this.message.id);
    else this.chat.regenerate(this.message.id);
  }

  /** The part of it that changes while it is written. */
  updateText(run) {
    if (this.editor) return;
    if (!this.isAnswer) {
      if (this.content.textContent !== this.message.content) this.content.textContent = this.message.content;
      return;
    }
    this.#updateReasoning();
    this.#updateBlocks();
    this.#updateNote(run);
  }

  #updateBlocks() {
    const { message, openText } = this;
    const rendering = this.chat.rendering(message.id);
    if (rendering.version !== this.version) {
      this.version = rendering.version;
      this.nShown = 0;
      this.content.replaceChildren(openText.root, this.waiting);
    }
    for (const { html } of rendering.blocks.slice(this.nShown)) openText.root.before(...blockNodes(html));
    this.nShown = rendering.blocks.length;
    openText.show(message.content.slice(rendering.until));
    const isThinking = message.reasoning !== "" && message.content === "";
    this.waiting.hidden = message.state !== "streaming" || isThinking;
    this.content.classList.toggle("is-empty", message.content === "");
  }

  #updateReasoning() {
    const { message } = this;
    this.reasoning.hidden = message.reasoning === "";
    if (this.reasoning.hidden) return;
    const isThinking = message.state === "streaming" && message.content === "";
    const took = message.stats.thoughtS;
    this.reasoning.classList.toggle("is-thinking", isThinking);
    const thought = took >= 1 ? `Thought for ${Math.round(took)} s` : "Thought for a moment";
    this.thoughtLabel.textContent = isThinking ? "Thinking" : thought;
    const { data } = this.thoughtText;
    const text = message.reasoning.trim();
    if (text.startsWith(data)) this.thoughtText.appendData(text.slice(data.length));
    else this.thoughtText.data = text;
  }

  #updateNote(run) {
    const { message } = this;
    const notes = {
      failed: plain(message.error ?? "The answer failed."),
      stopped: plain(message.error ?? "Stopped."),
    };
    let text = notes[message.state] ?? "";
    const { dropped } = message.stats;
    if (message.state === "done" && dropped) {
      text = `The conversation has outgrown the context: its ${dropped} oldest messages were left out.`;
    }
    if (message.state === "done" && message.stats.finishReason === "length") {
      text = "It ends here for its length; Continue goes on.";
    }
    if (message.state === "streaming" && run?.connection === "lost") text = "The connection was lost. Reconnecting …";
    this.note.hidden = text === "";
    if (this.note.textContent !== text) this.note.textContent = text;
    this.note.classList.toggle("is-error", message.state === "failed");
  }

  #updateVersions(siblings, isBusy) {
    const at = siblings.findIndex((message) => message.id === this.message.id);
    this.versions.hidden = siblings.length < 2;
    this.place.textContent = `${at + 1} / ${siblings.length}`;
    this.place.setAttribute("aria-label", `Version ${at + 1} of ${siblings.length}`);
    this.previous.disabled = isBusy || at === 0;
    this.next.disabled = isBusy || at === siblings.length - 1;
  }

  #updateStats() {
    const { stats, state } = this.message;
    const parts = [];
    if (state !== "streaming") {
      if (stats.tokensPerS) {
        parts.push(element("span", { class: "speed" }, `${rate.format(stats.tokensPerS)} tokens/s`));
      }
      if (stats.tokens) parts.push(element("span", {}, `${number.format(stats.tokens)} tokens`));
      if (stats.firstTokenS !== undefined) {
        parts.push(element("span", { title: "Time to the first token" }, `${shortly(stats.firstTokenS)} to the first`));
      }
      if (stats.contextMax && stats.contextUsed) parts.push(gauge(stats.contextUsed, stats.contextMax));
    }
    this.stats.replaceChildren(...parts);
  }

  async #copy() {
    const isCopied = await copyText(this.message.content);
    if (!isCopied) return tell("The browser did not allow to copy.");
    announce("Copied.");
    const use = this.copy.querySelector("use");
    use.setAttribute("href", "#icon-check");
    this.copy.setAttribute("aria-label", "Copied");
    setTimeout(() => {
      use.setAttribute("href", "#icon-copy");
      this.copy.setAttribute("aria-label", "Copy");
    }, 1600);
  }

  edit() {
    if (this.editor || this.chat.isBusy) return;
    const field = element("textarea", { class: "edit-field", rows: "1", dir: "auto", "aria-label": "Edit message" });
    field.value = this.message.content;
    const close = () => {
      this.editor?.replaceWith(this.content);
      this.editor = null;
      this.root.classList.remove("is-edited");
      this.root.focus({ preventScroll: true });
    };
    const save = () => {
      const text = field.value;
      close();
      if (text.trim() && text !== this.message.content) this.chat.edit(this.message.id, text);
    };
    this.editor = element(
      "div",
      { class: "editor", on: { keydown: (event) => this.#editKeys(event, save, close) } },
      field,
      element(
        "div",
        { class: "editor-buttons" },
        element("button", { type: "button", class: "button", on: { click: close } }, "Cancel"),
        element(
          "button",
          { type: "button", class: "button is-main", on: { click: save } },
          this.isAnswer ? "Save as a version" : "Send again",
        ),
      ),
    );
    this.root.classList.add("is-edited");
    this.content.replaceWith(this.editor);
    const grow = () => {
      field.style.height = "auto";
      field.style.height = `${Math.min(field.scrollHeight + 4, window.innerHeight * 0.6)}px`;
    };
    field.addEventListener("input", grow);
    grow();
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
  }

  #editKeys(event, save, close) {
    if (event.isComposing) return;
    if (event.key === "Escape") {
      event.stopPropagation();
      close();
    } else if (event.key === "Enter" && (this.isAnswer ? event.ctrlKey || event.metaKey : !event.shiftKey)) {
      event.preventDefault();
      save();
    }
  }
}

/** How much of the context the conversation has used. */
function gauge(used, max) {
  const share = Math.min(1, used / max);
  const ring = element("span", { class: "ring", "aria-hidden": "true" });
  ring.style.setProperty("--share", `${Math.round(share * 100)}%`);
  const words = `${number.format(used)} of ${number.format(max)} tokens of context`;
  const classes = share > 0.9 ? "gauge is-full" : "gauge";
  const attributes = { class: classes, title: words, role: "img", "aria-label": words };
  return element("span", attributes, ring, `${Math.round(share * 100)} %`);
}
