// The list of conversations: open, search, rename, export, delete.
import { byId, element, iconButton } from "./dom.js";
import { download, fileName, readFile } from "./files.js";
import { complain, tell } from "./toasts.js";

const DAY_MS = 86_400_000;
const SEARCH_MS = 120;

function groupOf(time) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  if (time >= midnight) return "Today";
  if (time >= midnight - DAY_MS) return "Yesterday";
  if (time >= midnight - 7 * DAY_MS) return "Last seven days";
  return "Earlier";
}

export class Sidebar {
  constructor(chat) {
    this.chat = chat;
    this.list = byId("conversations");
    this.search = byId("search");
    this.count = byId("search-count");
    for (const kind of ["open", "list", "running"]) chat.addEventListener(kind, () => this.update());
    this.search.addEventListener("input", () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.update(), SEARCH_MS);
    });
    this.search.addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown") this.list.querySelector("a")?.focus();
    });
    this.list.addEventListener("keydown", (event) => this.#walk(event));
    byId("export-all").addEventListener("click", () => this.#exportAll());
    byId("import").addEventListener("click", () => byId("import-file").click());
    byId("import-file").addEventListener("change", (event) => this.#import(event.target));
  }

  async update() {
    const turn = (this.turn = (this.turn ?? 0) + 1);
    const words = this.search.value.trim();
    const [all, said] = await Promise.all([
      this.chat.store.conversations(),
      words ? this.chat.store.search(words) : new Set(),
    ]);
    if (turn !== this.turn || this.list.querySelector("input")) return; // a later one, or a name being written
    const wanted = words.toLowerCase();
    const shown = words ? all.filter(({ id, title }) => said.has(id) || title.toLowerCase().includes(wanted)) : all;
    const focused = this.focusNext ?? document.activeElement?.closest?.("#conversations li")?.dataset.id;
    this.focusNext = null;
    const rows = [];
    let group = null;
    for (const conversation of shown) {
      const own = groupOf(conversation.updated);
      if (own !== group) rows.push(element("li", { class: "group", role: "presentation" }, own));
      group = own;
      rows.push(this.#row(conversation));
    }
    this.list.replaceChildren(...rows);
    if (focused) this.list.querySelector(`li[data-id="${CSS.escape(focused)}"] a`)?.focus();
    this.count.textContent = words ? `${shown.length} found` : "";
    byId("no-conversations").hidden = all.length > 0;
  }

  #row(conversation) {
    const { id, title } = conversation;
    const isCurrent = id === this.chat.conversation?.id;
    const link = element("a", { href: `#${id}`, title, dir: "auto", "aria-current": isCurrent ? "page" : null }, title);
    const row = element(
      "li",
      { "data-id": id, class: this.chat.runs.has(id) ? "is-running" : null },
      link,
      element(
        "span",
        { class: "row-tools" },
        iconButton("edit", `Rename ${title}`, () => this.#rename(row, conversation)),
        iconButton("export", `Export ${title}`, () => this.#export(conversation)),
        iconButton("delete", `Delete ${title}`, () => this.#remove(conversation)),
      ),
    );
    return row;
  }

  /** Up and down between the rows. */
  #walk(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || event.target.tagName !== "A") return;
    event.preventDefault();
    const links = [...this.list.querySelectorAll("a")];
    const next = links[links.indexOf(event.target) + step];
    if (next) next.focus();
    else if (step < 0) this.search.focus();
  }

  #rename(row, { id, title }) {
    const field = element("input", { type: "text", class: "rename", "aria-label": "Title", maxlength: "200" });
    field.value = title;
    let isFinished = false;
    const finish = (isKept) => {
      if (isFinished) return; // taking the field away blurs it
      isFinished = true;
      const text = field.value;
      field.remove();
      if (isKept && text.trim() && text !== title) this.chat.rename(id, text);
      else this.update();
    };
    field.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key !== "Enter" && event.key !== "Escape") return;
      this.focusNext = id;
      finish(event.key === "Enter");
    });
    field.addEventListener("blur", () => finish(true));
    row.replaceChildren(field);
    field.focus();
    field.select();
  }

  async #export({ id, title }) {
    download(await this.chat.entries(id), fileName(title));
  }

  async #exportAll() {
    const entries = await this.chat.entries();
    if (entries.length) download(entries, "conversations.json");
    else tell("There are no conversations yet.");
  }

  async #import(input) {
    const files = [...input.files];
    input.value = "";
    for (const file of files) {
      try {
        const entries = await readFile(file);
        await this.chat.bringIn(entries);
        tell(entries.length === 1 ? "1 conversation imported." : `${entries.length} conversations imported.`);
      } catch (error) {
        complain(error);
      }
    }
  }

  async #remove({ id }) {
    const links = [...this.list.querySelectorAll("a")];
    const at = links.findIndex((link) => link.parentElement.dataset.id === id);
    const next = links[at + 1] ?? links[at - 1];
    this.focusNext = next?.parentElement.dataset.id;
    const bringBack = await this.chat.removeConversation(id);
    if (!next) this.search.focus();
    if (id === this.chat.conversation?.id) location.hash = "";
    tell("Conversation deleted.", { label: "Undo", run: bringBack });
  }
}
