// Where the reader writes.
import { byId } from "./dom.js";

export class Composer {
  constructor(chat, { onUp }) {
    this.chat = chat;
    this.field = byId("composer-field");
    this.send = byId("send");
    this.stop = byId("stop");
    this.drafts = new Map();
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.stop.addEventListener("click", () => this.chat.stop());
    this.field.addEventListener("input", () => this.update());
    this.field.addEventListener("keydown", (event) => {
      if (event.isComposing) return;
      if (event.key === "Enter" && !event.shiftKey) {
        event.preventDefault();
        this.#submit();
      } else if (event.key === "ArrowUp" && this.field.value === "") {
        event.preventDefault();
        onUp();
      }
    });
    chat.addEventListener("open", () => this.#open());
    chat.addEventListener("path", () => this.update());
    chat.addEventListener("running", () => this.update());
  }

  focus() {
    this.field.focus();
  }

  /** What was begun in one conversation stays there. */
  #open() {
    const id = this.chat.conversation?.id ?? null;
    if (id === this.shownId) return;
    this.drafts.set(this.shownId, this.field.value);
    this.shownId = id;
    this.field.value = this.drafts.get(id) ?? "";
    this.update();
  }

  write(text) {
    this.field.value = text;
    this.update();
    this.focus();
  }

  update() {
    const isRunning = this.chat.run !== null;
    const hadFocus = document.activeElement === this.send || document.activeElement === this.stop;
    this.send.hidden = isRunning;
    this.stop.hidden = !isRunning;
    this.send.disabled = this.field.value.trim() === "" || this.chat.isBusy;
    if (hadFocus) this.focus();
    this.field.style.height = "auto";
    this.field.style.height = `${this.field.scrollHeight}px`;
  }

  #submit() {
    const text = this.field.value;
    if (text.trim() === "" || this.chat.isBusy) return;
    this.field.value = "";
    this.update();
    this.chat.send(text);
  }
}
