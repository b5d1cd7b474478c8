// A conversation's messages as a tree: editing and regenerating add a sibling, the arrows walk between siblings.
// Plain data in, plain data out; nothing here knows the page or the store.

export class Tree {
  /** messages: {id, parent, created, ...}; a parent that is not there, or that would close a circle, counts as none. */
  constructor(messages = []) {
    this.messages = new Map(messages.map((message) => [message.id, message]));
    this.families = null; // parent or null -> its children, the oldest first; null = to be found anew
    this.#cutCircles();
  }

  /** A file that was made by hand may hold them. */
  #cutCircles() {
    const sound = new Set();
    for (const start of this.messages.values()) {
      const line = new Set();
      for (let at = start; at && !sound.has(at); at = this.get(at.parent)) {
        line.add(at);
        if (line.has(this.get(at.parent))) at.parent = null;
      }
      for (const message of line) sound.add(message);
    }
  }

  get(id) {
    return this.messages.get(id) ?? null;
  }

  add(message) {
    this.messages.set(message.id, message);
    this.families = null;
  }

  #parentOf(message) {
    return message.parent !== null && this.messages.has(message.parent) ? message.parent : null;
  }

  children(parentId) {
    if (!this.families) {
      this.families = new Map();
      for (const message of [...this.messages.values()].sort((a, b) => a.created - b.created)) {
        const parent = this.#parentOf(message);
        if (!this.families.has(parent)) this.families.set(parent, []);
        this.families.get(parent).push(message);
      }
    }
    return this.families.get(parentId) ?? [];
  }

  siblings(id) {
    return this.children(this.#parentOf(this.messages.get(id)));
  }

  /** From the first message to `leaf`. */
  path(leaf) {
    const found = [];
    for (let message = this.get(leaf); message; message = this.get(message.parent)) found.push(message);
    return found.reverse();
  }

  /** The end of the newest line that goes through `id`; null = of the whole tree. */
  newestLeaf(id) {
    let at = id;
    for (;;) {
      const next = this.children(at).at(-1);
      if (!next) return at;
      at = next.id;
    }
  }

  /** Takes a message and all that follows it out; they are returned. */
  remove(id) {
    const gone = [this.messages.get(id)];
    for (let i = 0; i < gone.length; i++) gone.push(...this.children(gone[i].id));
    for (const message of gone) this.messages.delete(message.id);
    this.families = null;
    return gone;
  }

  /** Messages as another tab has kept them: those that are there stay the same objects. Ids of those that say
   * something else now. */
  renew(messages) {
    const changed = messages.filter(({ id, content }) => this.get(id)?.content !== content).map(({ id }) => id);
    const all = messages.map((message) => Object.assign(this.get(message.id) ?? message, message));
    this.messages = new Map(all.map((message) => [message.id, message]));
    this.families = null;
    this.#cutCircles();
    return changed;
  }
}
