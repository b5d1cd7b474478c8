// One answer being written into its message.
import { AnswerStream, LostError } from "./answer_stream.js";
import { renderBlocks } from "./server.js";

export class Run {
  /** message: the one that is written; what comes follows its first `message.base` characters. rendering: its blocks.
   * request or streamId: see AnswerStream. onChange(): something is to be shown. onSave(): something is to be kept. */
  constructor({ message, rendering, request, streamId, onChange, onSave }) {
    this.message = message;
    this.rendering = rendering;
    this.onChange = onChange;
    this.onSave = onSave;
    this.connection = "open";
    this.thinksSince = null;
    this.stream = new AnswerStream({
      request,
      streamId,
      onEvent: (name, data) => this.#take(name, data),
      onConnection: (state) => {
        this.connection = state;
        this.onChange();
      },
    });
  }

  /** Resolves to the error that ended it, or null. The message is finished then, and kept. */
  async run() {
    const { message } = this;
    message.state = "streaming";
    message.error = null;
    let failure = null;
    try {
      await this.stream.run();
      if (message.error) failure = new Error(message.error);
    } catch (error) {
      failure = error;
    }
    this.#endThought();
    const wasStopped = this.stream.isStopped || message.stats.finishReason === "abort";
    message.state = failure ? "failed" : wasStopped ? "stopped" : "done";
    message.error = failure ? failure.message : null;
    if (failure instanceof LostError && message.content) message.state = "stopped";
    delete message.stream;
    delete message.base;
    await this.#renderRest();
    this.onChange();
    this.onSave();
    return failure;
  }

  stop() {
    return this.stream.stop();
  }

  #take(name, data) {
    const { message } = this;
    if (name === "start") {
      message.stream = data.stream;
      message.content = message.content.slice(0, message.base); // what was read before the page was loaded again
      if (message.base === 0) message.reasoning = "";
      message.stats = { model: data.model, contextMax: data.max_model_len };
      this.rendering.clear(); // blocks come for the whole message, also for what it said before
      this.onSave();
    } else if (name === "message") {
      this.#endThought();
      message.content += data.text;
    } else if (name === "reasoning") {
      this.thinksSince ??= performance.now();
      message.reasoning += data.text;
    } else if (name === "block") {
      this.rendering.add(data.index, data.html, data.until, message.content);
    } else if (name === "end") {
      Object.assign(message.stats, {
        finishReason: data.finish_reason,
        tokens: data.usage?.completion_tokens,
        tokensPerS: data.tokens_per_s,
        firstTokenS: data.time_to_first_token_s,
        contextUsed: data.context?.used,
        contextMax: data.context?.max,
        dropped: data.dropped_messages,
      });
    } else if (name === "error") {
      message.error = data.error?.message ?? "The answer failed.";
    }
    this.onChange();
  }

  #endThought() {
    if (this.thinksSince === null) return;
    this.message.stats.thoughtS = (this.message.stats.thoughtS ?? 0) + (performance.now() - this.thinksSince) / 1000;
    this.thinksSince = null;
  }

  /** What the stream did not bring as blocks: an answer that was cut off, or gone on with. */
  async #renderRest() {
    const { message, rendering } = this;
    if (message.content.slice(rendering.until).trim() === "") {
      rendering.isWhole = true;
      return;
    }
    try {
      rendering.replace(await renderBlocks(message.content), message.content);
    } catch {
      // It stays plain text, and is rendered when the conversation is opened again.
    }
  }
}
