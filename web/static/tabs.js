// Other tabs with this page: they are told what has been kept, and asked who reads an answer, since one alone can.
const NAME = "llm_decoder";
const REPLY_MS = 150;

export class Tabs {
  constructor() {
    this.channel = new BroadcastChannel(NAME);
    this.waiting = new Map(); // stream id -> what is called when a tab says that it reads it
    this.channel.addEventListener("message", ({ data }) => this.#take(data));
  }

  /** isReading(streamId); onKept(conversationId); onLeft(conversationId): the tab that read its answer is gone. */
  listen({ isReading, onKept, onLeft }) {
    Object.assign(this, { isReading, onKept, onLeft });
  }

  #take({ kind, id }) {
    if (kind === "kept") this.onKept(id);
    else if (kind === "left") this.onLeft(id);
    else if (kind === "who" && this.isReading(id)) this.channel.postMessage({ kind: "me", id });
    else if (kind === "me") this.waiting.get(id)?.();
  }

  tellKept(conversationId) {
    this.channel.postMessage({ kind: "kept", id: conversationId });
  }

  tellLeft(conversationId) {
    this.channel.postMessage({ kind: "left", id: conversationId });
  }

  /** Whether another tab reads the stream. */
  isReadElsewhere(streamId) {
    return new Promise((resolve) => {
      const answer = (isRead) => {
        clearTimeout(timer);
        this.waiting.delete(streamId);
        resolve(isRead);
      };
      const timer = setTimeout(() => answer(false), REPLY_MS);
      this.waiting.set(streamId, () => answer(true));
      this.channel.postMessage({ kind: "who", id: streamId });
    });
  }
}
