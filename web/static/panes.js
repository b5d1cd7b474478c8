// The two panes beside the conversation: columns where there is room, sheets over it on a phone.
import { byId } from "./dom.js";

const NARROW = window.matchMedia("(max-width: 860px)");
const KEY = "llm_decoder.panes";
const BUTTONS = { sidebar: "show-sidebar", settings: "show-settings" };

export class Panes {
  constructor() {
    this.open = { sidebar: !NARROW.matches, settings: false };
    try {
      if (!NARROW.matches) Object.assign(this.open, JSON.parse(localStorage.getItem(KEY)));
    } catch {
      // Nothing kept, or not by us.
    }
    for (const name of Object.keys(BUTTONS)) {
      byId(BUTTONS[name]).addEventListener("click", () => this.toggle(name));
      byId(`close-${name}`).addEventListener("click", () => this.#set(name, false, true));
    }
    byId("backdrop").addEventListener("click", () => this.closeSheets());
    NARROW.addEventListener("change", () => {
      this.open = { sidebar: !NARROW.matches, settings: false };
      this.#show();
    });
    this.#show();
  }

  toggle(name) {
    this.#set(name, !this.open[name], true);
  }

  show(name) {
    this.#set(name, true, false);
  }

  /** Whether there was one to close. */
  closeSheets() {
    if (!NARROW.matches || !(this.open.sidebar || this.open.settings)) return false;
    const name = this.open.sidebar ? "sidebar" : "settings";
    this.#set(name, false, true);
    return true;
  }

  #set(name, isOpen, takesFocus) {
    if (NARROW.matches && isOpen) this.open = { sidebar: false, settings: false };
    this.open[name] = isOpen;
    this.#show();
    if (!NARROW.matches) {
      try {
        localStorage.setItem(KEY, JSON.stringify(this.open));
      } catch {
        // It is as it was at the next start.
      }
    }
    if (!takesFocus) return;
    if (isOpen) byId(`close-${name}`).focus();
    else byId(BUTTONS[name]).focus();
  }

  #show() {
    for (const [name, button] of Object.entries(BUTTONS)) {
      const isOpen = Boolean(this.open[name]);
      document.body.classList.toggle(`has-${name}`, isOpen);
      byId(name).inert = !isOpen;
      byId(button).setAttribute("aria-expanded", String(isOpen));
    }
    const isCovered = NARROW.matches && (this.open.sidebar || this.open.settings);
    byId("backdrop").hidden = !isCovered;
    byId("main").inert = isCovered;
  }
}
