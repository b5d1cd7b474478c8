// A conversation's messages as a tree: editing and regenerating add a sibling, the arrows walk between siblings.
// Plain data in, plain data out; nothing here knows the page or the store.

export class Tree {
  /** messages: {id, parent, created, ...}; a parent that is not there counts as none. */
  constructor(messages = []) {
    this.messages = new Map(messages.map((message) => [message.id, message]));
  }

  get(id) {
    return this.messages.get(id) ?? null;
  }

  add(message) {
    this.messages.set(message.id, message);
  }

  get isEmpty() {
    return this.messages.size === 0;
  }

  #parentOf(message) {
    return message.parent !== null && this.messages.has(message.parent) ? message.parent : null;
  }

  children(parentId) {
    return [...this.messages.values()]
      .filter((message) => this.#parentOf(message) === parentId)
      .sort((a, b) => a.created - b.created);
  }

  siblings(id) {
    return this.children(this.#parentOf(this.messages.get(id)));
  }

  /** From the first message to `leaf`. */
  path(leaf) {
    const found = [];
    const seen = new Set();
    for (let message = this.get(leaf); message && !seen.has(message.id); message = this.get(message.parent)) {
      seen.add(message.id); // a file that was made by hand may hold a circle
      found.push(message);
    }
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
    return gone;
  }
}
