// Conversations in the browser (IndexedDB). Two tables: `conversations`, small, listed at the start, and `messages`,
// read when one is opened or searched. HTML is never kept: what an import brings in must not become markup.

const NAME = "llm_decoder";
const VERSION = 1;

/** The browser did not take what was to be kept. */
export class StorageError extends Error {
  constructor(cause) {
    const isFull = cause?.name === "QuotaExceededError";
    super(
      isFull
        ? "The browser's storage is full: what comes now is not kept. Delete conversations that you do not need."
        : "The browser could not keep this conversation. What you see is lost when the page is closed.",
    );
  }
}

function promised(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function finished(transaction) {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onerror = () => reject(transaction.error);
    transaction.onabort = () => reject(transaction.error ?? new Error("the browser's storage refused"));
  });
}

export class Store {
  static async open() {
    const request = indexedDB.open(NAME, VERSION);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("conversations", { keyPath: "id" });
      request.result.createObjectStore("messages", { keyPath: "id" }).createIndex("conversation", "conversation");
    };
    return new Store(await promised(request));
  }

  constructor(database) {
    this.database = database;
  }

  /** Throws StorageError. */
  async #write(change) {
    try {
      const transaction = this.database.transaction(["conversations", "messages"], "readwrite");
      change(transaction.objectStore("conversations"), transaction.objectStore("messages"));
      await finished(transaction);
    } catch (error) {
      throw new StorageError(error);
    }
  }

  #table(name) {
    return this.database.transaction(name).objectStore(name);
  }

  /** All, the last used first. */
  async conversations() {
    const all = await promised(this.#table("conversations").getAll());
    return all.sort((a, b) => b.updated - a.updated);
  }

  conversation(id) {
    return promised(this.#table("conversations").get(id));
  }

  messages(conversationId) {
    return promised(this.#table("messages").index("conversation").getAll(conversationId));
  }

  save(conversation, messages = []) {
    return this.#write((conversations, table) => {
      conversations.put(conversation);
      for (const message of messages) table.put(message);
    });
  }

  removeMessages(ids) {
    return this.#write((_, table) => ids.forEach((id) => table.delete(id)));
  }

  async remove(conversationId) {
    const ids = await promised(this.#table("messages").index("conversation").getAllKeys(conversationId));
    return this.#write((conversations, table) => {
      conversations.delete(conversationId);
      ids.forEach((id) => table.delete(id));
    });
  }

  /** Ids of the conversations that say `words` somewhere, whatever the case. */
  search(words) {
    const wanted = words.toLowerCase();
    const found = new Set();
    const request = this.#table("messages").openCursor();
    return new Promise((resolve, reject) => {
      request.onerror = () => reject(request.error);
      request.onsuccess = () => {
        const cursor = request.result;
        if (!cursor) return resolve(found);
        const { conversation, content } = cursor.value;
        if (!found.has(conversation) && content.toLowerCase().includes(wanted)) found.add(conversation);
        cursor.continue();
      };
    });
  }
}
