// Conversations where the browser keeps nothing, as in some private windows: what Store does, for as long as the page
// is open.
export class MemoryStore {
  constructor() {
    this.kept = { conversations: new Map(), messages: new Map() };
  }

  async conversations() {
    return structuredClone([...this.kept.conversations.values()]).sort((a, b) => b.updated - a.updated);
  }

  async conversation(id) {
    return structuredClone(this.kept.conversations.get(id));
  }

  async messages(conversationId) {
    return structuredClone(this.#of(conversationId));
  }

  #of(conversationId) {
    return [...this.kept.messages.values()].filter(({ conversation }) => conversation === conversationId);
  }

  async save(conversation, messages = []) {
    this.kept.conversations.set(conversation.id, structuredClone(conversation));
    for (const message of messages) this.kept.messages.set(message.id, structuredClone(message));
  }

  async removeMessages(ids) {
    for (const id of ids) this.kept.messages.delete(id);
  }

  async remove(conversationId) {
    await this.removeMessages(this.#of(conversationId).map(({ id }) => id));
    this.kept.conversations.delete(conversationId);
  }

  async search(words) {
    const wanted = words.toLowerCase();
    const found = [...this.kept.messages.values()].filter(({ content }) => content.toLowerCase().includes(wanted));
    return new Set(found.map(({ conversation }) => conversation));
  }
}
