// The messages that are shown, and where the reader is in them.
import { announce, byId } from "./dom.js";
import { MessageView } from "./message_view.js";

const NEAR_PX = 64;

export class Transcript {
  constructor(chat, onRemoved) {
    this.chat = chat;
    this.onRemoved = onRemoved;
    this.scroller = byId("scroller");
    this.list = byId("messages");
    this.welcome = byId("welcome");
    this.toEnd = byId("to-end");
    this.views = new Map();
    this.isFollowing = true;
    this.changed = new Set();
    chat.addEventListener("open", () => this.#open());
    chat.addEventListener("path", () => this.update());
    chat.addEventListener("message", ({ detail }) => this.#schedule(detail));
    chat.addEventListener("running", ({ detail }) => this.#say(detail));
    this.scroller.addEventListener("scroll", () => this.#noticeScroll(), { passive: true });
    this.toEnd.addEventListener("click", () => this.follow());
    // Before each paint: what grows pushes the rest up in the same frame.
    new ResizeObserver(() => this.isFollowing && this.#scrollToEnd()).observe(this.list);
    new ResizeObserver(() => this.isFollowing && this.#scrollToEnd()).observe(this.scroller);
  }

  get last() {
    const id = this.chat.path.at(-1)?.id;
    return id ? this.views.get(id) : null;
  }

  viewOf(id) {
    return this.views.get(id) ?? null;
  }

  #open() {
    this.views.clear();
    this.list.replaceChildren();
    this.update();
    this.follow();
  }

  /** Other messages, or others' neighbours: views that stay are kept as they are. */
  update() {
    const { path, run, isBusy, tree } = this.chat;
    const focused = document.activeElement;
    const focusedAt = [...this.list.children].findIndex((child) => child.contains(focused));
    this.welcome.hidden = path.length > 0;
    const shown = new Set(path.map((message) => message.id));
    for (const [id, view] of this.views) {
      if (shown.has(id)) continue;
      view.root.remove();
      this.views.delete(id);
    }
    path.forEach((message, at) => {
      let view = this.views.get(message.id);
      if (!view) {
        view = new MessageView(message, this.chat, this.onRemoved);
        this.views.set(message.id, view);
      }
      const there = this.list.children[at];
      if (there !== view.root) this.list.insertBefore(view.root, there ?? null);
      view.update({
        run: run?.message === message ? run : null,
        isBusy,
        siblings: tree.siblings(message.id),
        isLast: at === path.length - 1,
      });
    });
    if (run && path.at(-1) === run.message && run.message.content === "") this.follow();
    if (focusedAt >= 0) this.#keepFocus(focused, focusedAt);
  }

  /** Who works by keys goes on where he was, when what he pressed is gone or can no longer be pressed. */
  #keepFocus(focused, at) {
    const isThere = (node) => node.isConnected && !node.disabled && node.checkVisibility({ visibilityProperty: true });
    if (isThere(focused)) return;
    const root = this.list.children[Math.min(at, this.list.children.length - 1)];
    const name = focused.getAttribute("aria-label");
    const same = name && [...root?.querySelectorAll("button") ?? []].find((each) => each.ariaLabel === name);
    const next = same && isThere(same) ? same : (root ?? byId("composer-field"));
    next.focus({ preventScroll: true });
  }

  /** Text comes more often than the screen is painted. */
  #schedule(id) {
    this.changed.add(id);
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = null;
      const { run } = this.chat;
      for (const each of this.changed) this.views.get(each)?.updateText(run?.message.id === each ? run : null);
      this.changed.clear();
    });
  }

  #say(finished) {
    if (!finished) return announce("The answer is being written.");
    if (finished.id !== this.chat.conversation?.id) return;
    announce(finished.message.error ?? `Answer: ${finished.message.content.slice(0, 2000)}`);
  }

  // -- where the reader is

  follow() {
    this.isFollowing = true;
    this.toEnd.hidden = true;
    this.#scrollToEnd();
  }

  #scrollToEnd() {
    this.scroller.scrollTop = this.welcome.hidden ? this.scroller.scrollHeight : 0;
  }

  #noticeScroll() {
    const { scrollTop, clientHeight, scrollHeight } = this.scroller;
    const isUp = scrollTop < (this.lastTop ?? 0);
    this.lastTop = scrollTop;
    const isAtEnd = scrollHeight - scrollTop - clientHeight < NEAR_PX;
    // Only a reader scrolls up; a page that grows does not.
    if (isAtEnd) this.isFollowing = true;
    else if (isUp) this.isFollowing = false;
    this.toEnd.hidden = this.isFollowing || isAtEnd;
  }
}
