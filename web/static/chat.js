// What the reader can do with conversations, without how it looks. Tells of changes by events:
// "open" (another conversation is shown), "path" (other messages), "message" (detail: id; its text grew or ended),
// "list" (conversations), "running", "trouble" (detail: {error, retry}).
import { newId, now } from "./ids.js";
import { emptySettings, keepSettings, lastSettings } from "./presets.js";
import { Rendering } from "./rendering.js";
import { Run } from "./run.js";
import { renderBlocks, ServerError } from "./server.js";
import { Tree } from "./tree.js";

const SAVE_MS = 500;
const RENDER_WAIT_MS = 400; // a conversation that opens waits so long for its blocks, rather than to jump

/** The first line, cut after a word. */
function titleOf(text) {
  const line = text.trim().split("\n")[0];
  return line.length <= 60 ? line : `${line.slice(0, 60).replace(/\s+\S*$/, "")} …`;
}

export class Chat extends EventTarget {
  constructor(store, tabs) {
    super();
    this.store = store;
    this.tabs = tabs;
    this.conversation = null; // null: a new one, which is made with its first message
    this.tree = new Tree();
    this.settings = lastSettings();
    this.runs = new Map(); // conversation id -> Run
    this.trees = new Map(); // of conversations that run while another one is shown
    this.renderings = new Map(); // message id -> Rendering
    const isShown = (id) => id === this.conversation?.id;
    tabs.listen({
      isReading: (streamId) => [...this.runs.values()].some(({ message }) => message.stream === streamId),
      onKept: (id) => this.#renew(id),
      onLeft: (id) => isShown(id) && this.#takeUp(),
    });
    window.addEventListener("pagehide", () => this.runs.forEach((_, id) => tabs.tellLeft(id)));
  }

  #tell(kind, detail) {
    this.dispatchEvent(new CustomEvent(kind, { detail }));
  }

  // -- what is shown

  get path() {
    return this.conversation ? this.tree.path(this.conversation.leaf) : [];
  }

  get run() {
    return this.conversation ? (this.runs.get(this.conversation.id) ?? null) : null;
  }

  /** Whether an answer is being written to what is shown, here or in another tab. */
  get isBusy() {
    return this.run !== null || this.path.at(-1)?.state === "streaming";
  }

  rendering(id) {
    if (!this.renderings.has(id)) this.renderings.set(id, new Rendering());
    return this.renderings.get(id);
  }

  open(id) {
    if (this.opening && id === (this.conversation?.id ?? null)) return this.opening;
    this.opening = this.#open(id);
    return this.opening;
  }

  async #open(id) {
    const turn = (this.turn = (this.turn ?? 0) + 1);
    const conversation = id ? ((await this.#known(id)) ?? null) : null;
    const tree = conversation ? (this.trees.get(id) ?? new Tree(await this.store.messages(id))) : new Tree();
    if (conversation) await this.#renderPath(tree.path(conversation.leaf));
    if (turn !== this.turn) return; // another one was opened meanwhile
    this.conversation = conversation;
    this.tree = tree;
    this.settings = conversation ? { ...emptySettings(), ...conversation.settings } : lastSettings();
    this.#tell("open");
    this.#takeUp();
  }

  /** Blocks of all answers of a path; those of a slow server come later. */
  #renderPath(path = this.path) {
    const open = path.filter((message) => message.role === "assistant" && message.state !== "streaming");
    const all = open.reverse().map((message) => this.#render(message)); // the end is what is seen first
    return Promise.race([Promise.all(all), new Promise((resolve) => setTimeout(resolve, RENDER_WAIT_MS))]);
  }

  async #render(message) {
    const rendering = this.rendering(message.id);
    if (rendering.isWhole || message.content.trim() === "") return;
    try {
      rendering.replace(await renderBlocks(message.content), message.content);
      this.#tell("message", message.id);
    } catch {
      // Plain text is readable too; what is wrong with the server is told where something is asked of it.
    }
  }

  /** An answer that was on its way when the page was left: it goes on where the server still has it. */
  async #takeUp() {
    const message = this.path.at(-1);
    const isLeft = () => message && message === this.path.at(-1) && message.state === "streaming" && !this.run;
    if (!isLeft()) return;
    if (message.stream && ((await this.tabs.isReadElsewhere(message.stream)) || !isLeft())) return;
    if (!message.stream) {
      message.state = "stopped";
      this.#save([message]);
      this.#tell("path");
      return;
    }
    this.#start({ message, streamId: message.stream });
  }

  /** Another tab has kept something: it shows here, too. */
  async #renew(id) {
    this.#tell("list");
    const { conversation, tree } = this;
    if (conversation?.id !== id) return;
    const [kept, messages] = await Promise.all([this.store.conversation(id), this.store.messages(id)]);
    if (conversation !== this.conversation || !kept) return;
    if (this.run) {
      conversation.title = kept.title; // what is written here knows better of the rest
      return;
    }
    Object.assign(conversation, kept);
    for (const changed of tree.renew(messages)) this.rendering(changed).clear();
    await this.#renderPath();
    this.#tell("path");
  }

  // -- writing and answers

  async send(text) {
    await this.opening; // who writes while a conversation opens writes to that one
    if (this.isBusy) return;
    if (!this.conversation) this.#create(text);
    const message = this.#add("user", this.conversation.leaf, text);
    await Promise.all([this.#save([message]), this.#answer(message.id)]);
  }

  /** A changed copy of a message beside it; one of the reader's own is answered anew. */
  async edit(id, text) {
    if (this.isBusy) return;
    const old = this.tree.get(id);
    const message = this.#add(old.role, old.parent, text);
    if (old.role === "user") await Promise.all([this.#save([message]), this.#answer(message.id)]);
    else {
      await Promise.all([this.#save([message]), this.#render(message)]);
      this.#tell("path");
    }
  }

  /** Another answer beside this one; to a message of the reader's own, an answer. */
  async regenerate(id) {
    if (this.isBusy) return;
    const message = this.tree.get(id);
    const isNothing = message.role === "assistant" && message.content === "" && message.reasoning === "";
    if (isNothing) await this.#forget(this.tree.remove(id)); // that it failed is no version to come back to
    await this.#answer(message.role === "user" ? id : message.parent);
  }

  /** The answer goes on where it ended. */
  goOn(id) {
    if (this.isBusy) return;
    const message = this.tree.get(id);
    const messages = this.#asked(id);
    message.base = message.content.length;
    return this.#start({ message, request: { messages, continue_final_message: true } });
  }

  /** What the server is asked for an answer to `question`, "" = to what was said last. */
  messagesWith(question) {
    const messages = this.#asked(this.conversation?.leaf ?? null);
    return question ? [...messages, { role: "user", content: question }] : messages;
  }

  /** An answer that was found elsewhere, by a search: to `question`, "" = to what was said last. It goes on where it
   * ends, unless it is whole. */
  async take(question, text, isWhole) {
    if (!this.conversation) this.#create(question);
    const asked = question ? [this.#add("user", this.conversation.leaf, question)] : [];
    const answer = this.#add("assistant", this.conversation.leaf, text);
    await Promise.all([this.#save([...asked, answer]), this.#render(answer)]);
    this.#tell("path");
    if (!isWhole) await this.goOn(answer.id);
  }

  stop() {
    return this.run?.stop();
  }

  #create(text) {
    const time = now();
    const title = titleOf(text);
    this.conversation = { id: newId(), title, created: time, updated: time, leaf: null, settings: this.settings };
    this.tree = new Tree();
    this.#tell("open");
  }

  #add(role, parent, content) {
    const message = {
      id: newId(),
      conversation: this.conversation.id,
      parent,
      role,
      content,
      reasoning: "",
      created: Math.max(now(), 1 + (this.tree.children(parent).at(-1)?.created ?? 0)), // clocks are set back, too
      state: "done",
      stats: {},
    };
    this.tree.add(message);
    this.conversation.leaf = message.id;
    this.conversation.updated = message.created;
    return message;
  }

  /** The messages up to `id` as the server takes them. */
  #asked(id) {
    const { system } = this.settings;
    const said = this.tree
      .path(id)
      .filter(({ role, content }) => role === "user" || content !== "")
      .map(({ role, content }) => ({ role, content }));
    return system.trim() ? [{ role: "system", content: system }, ...said] : said;
  }

  #answer(parent) {
    const messages = this.#asked(parent);
    return this.#start({ message: this.#add("assistant", parent, ""), request: { messages } });
  }

  async #start({ message, request, streamId }) {
    message.base ??= 0;
    const { conversation, tree } = this;
    let saved = 0;
    const save = () => this.#keep(conversation, [message]);
    const run = new Run({
      message,
      rendering: this.rendering(message.id),
      request: request && { ...request, ...this.settings.sampling },
      streamId,
      onChange: () => {
        this.#tell("message", message.id);
        if (performance.now() - saved < SAVE_MS) return;
        saved = performance.now();
        save();
      },
      onSave: save,
    });
    this.runs.set(conversation.id, run);
    this.trees.set(conversation.id, tree);
    message.state = "streaming";
    this.#tell("path");
    this.#tell("running");
    run.conversation = conversation;
    run.end = run.run();
    const error = await run.end;
    this.runs.delete(conversation.id);
    this.trees.delete(conversation.id);
    const wasLeft = streamId && error instanceof ServerError && error.status < 500;
    if (wasLeft) {
      message.state = "stopped"; // nobody came for it in time
      message.error = null;
      save();
    } else if (error) this.#tell("trouble", { error });
    this.#tell("running", { id: conversation.id, message });
    this.#tell("path");
  }

  // -- the tree

  /** Shows the version `step` beside this one (-1, 1). */
  async walk(id, step) {
    if (this.isBusy) return;
    const all = this.tree.siblings(id);
    const next = all[all.findIndex((message) => message.id === id) + step];
    if (!next) return;
    this.conversation.leaf = this.tree.newestLeaf(next.id);
    await this.#renderPath();
    await this.#save();
    this.#tell("path");
  }

  /** Takes a message and what follows it away; returns what brings them back. */
  async removeMessage(id) {
    if (this.isBusy) return null;
    const { conversation, tree } = this;
    const { leaf } = conversation;
    const siblings = tree.siblings(id).filter((message) => message.id !== id);
    const { parent } = tree.get(id);
    const gone = tree.remove(id);
    conversation.leaf = siblings.length ? tree.newestLeaf(siblings.at(-1).id) : tree.get(parent) ? parent : null;
    await this.#forget(gone);
    await this.#renderPath();
    await this.#save();
    this.#tell("path");
    return async () => {
      gone.forEach((message) => tree.add(message));
      conversation.leaf = leaf;
      await this.#keep(conversation, gone);
      this.#tell("path");
    };
  }

  #save(messages = []) {
    const kept = this.#keep(this.conversation, messages);
    this.#tell("list");
    return kept;
  }

  /** What the browser does not take is told, and goes on without. */
  async #keep(conversation, messages = []) {
    try {
      await this.store.save(conversation, messages);
      this.tabs.tellKept(conversation.id);
    } catch (error) {
      this.#tell("trouble", { error });
    }
  }

  #forget(messages) {
    return this.store.removeMessages(messages.map(({ id }) => id)).catch((error) => this.#tell("trouble", { error }));
  }

  // -- conversations

  /** The one object of a conversation that is shown or written: whoever saves it saves all of it. */
  async #known(id) {
    if (id === this.conversation?.id) return this.conversation;
    return this.runs.get(id)?.conversation ?? this.store.conversation(id);
  }

  async rename(id, title) {
    const conversation = await this.#known(id);
    conversation.title = title.trim().slice(0, 200) || conversation.title;
    await this.#keep(conversation);
    this.#tell("list");
  }

  /** Returns what brings it back. */
  async removeConversation(id) {
    const run = this.runs.get(id);
    await run?.stop();
    await run?.end; // its last save must not bring the conversation back
    const conversation = await this.store.conversation(id);
    const messages = await this.store.messages(id);
    await this.store.remove(id);
    this.tabs.tellKept(id);
    this.#tell("list");
    return async () => {
      await this.#keep(conversation, messages);
      this.#tell("list");
    };
  }

  /** {conversation, messages} of one, or of all. */
  async entries(id = null) {
    const conversations = id ? [await this.store.conversation(id)] : await this.store.conversations();
    return Promise.all(
      conversations.map(async (conversation) => ({
        conversation,
        messages: await this.store.messages(conversation.id),
      })),
    );
  }

  async bringIn(entries) {
    for (const { conversation, messages } of entries) {
      if (!messages.some((message) => message.id === conversation.leaf)) {
        conversation.leaf = new Tree(messages).newestLeaf(null);
      }
      await this.store.save(conversation, messages);
      this.tabs.tellKept(conversation.id);
    }
    this.#tell("list");
  }

  async changeSettings(settings) {
    this.settings = settings;
    keepSettings(settings);
    if (!this.conversation) return;
    this.conversation.settings = settings;
    await this.#keep(this.conversation);
  }
}
