// One answer on its way: asked for, read, and taken up again when the connection drops.
import { call, ServerError } from "./server.js";
import { readEvents } from "./sse.js";

const DELAYS_MS = [200, 500, 1000, 2000, 3000, 4000, 4000]; // in sum what a server waits for its reader
const SILENCE_MS = 45_000; // a server that lives says so every 15 s
const STOP_MS = 3000;

/** The connection dropped and the answer is no longer there to be taken up. */
export class LostError extends Error {
  constructor() {
    super("The connection was lost, and the server has stopped this answer.");
  }
}

export class AnswerStream {
  /** Either `request`, the body of a new one, or `streamId` of one that runs already, read from its beginning.
   * onEvent(name, data), onConnection("open" | "lost"). */
  constructor({ request = null, streamId = null, onEvent, onConnection = () => {} }) {
    this.request = request;
    this.streamId = streamId;
    this.onEvent = onEvent;
    this.onConnection = onConnection;
    this.lastId = null;
    this.isStopped = false;
    this.isOver = false;
    this.controller = new AbortController();
  }

  /** Resolves when the answer is over, also when it was stopped. Throws ServerError, NetworkError, LostError. */
  async run() {
    try {
      let response = this.streamId ? await this.#resume() : await this.#start();
      for (;;) {
        await this.#read(response);
        if (this.isOver) return;
        response = await this.#reconnect();
      }
    } catch (error) {
      if (!this.isStopped) throw error;
    } finally {
      this.isOver = true;
    }
  }

  /** Asks the server to end the answer; what it has written so far still comes. */
  async stop() {
    if (this.isStopped || this.isOver) return;
    this.isStopped = true;
    const giveUp = () => this.controller.abort();
    if (!this.streamId) return giveUp();
    setTimeout(giveUp, STOP_MS);
    try {
      await call("POST", `page/stream/${encodeURIComponent(this.streamId)}/stop`, { body: {} });
    } catch {
      giveUp();
    }
  }

  #start() {
    return call("POST", "page/stream", { body: this.request, signal: this.controller.signal });
  }

  #resume() {
    const headers = this.lastId === null ? {} : { "last-event-id": this.lastId };
    const path = `page/stream/${encodeURIComponent(this.streamId)}`;
    return call("GET", path, { headers, signal: this.controller.signal });
  }

  async #read(response) {
    let timer;
    const body = response.body;
    const connection = new AbortController();
    const isAlive = () => {
      clearTimeout(timer);
      timer = setTimeout(() => connection.abort(), SILENCE_MS);
    };
    const silence = new Promise((_, reject) => {
      connection.signal.addEventListener("abort", () => reject(new Error("silence")));
    });
    silence.catch(() => {});
    isAlive();
    const events = readEvents(body, isAlive);
    try {
      for (;;) {
        const { value, done } = await Promise.race([events.next(), silence]);
        if (done) return;
        if (value.data === "[DONE]") {
          this.isOver = true;
          return;
        }
        if (value.id !== null) this.lastId = value.id;
        const data = JSON.parse(value.data);
        if (value.event === "start") this.streamId = data.stream;
        this.onEvent(value.event, data);
      }
    } catch (error) {
      if (error.name === "AbortError" || error instanceof SyntaxError) throw error;
      // The connection broke; `run` takes the stream up again.
    } finally {
      clearTimeout(timer);
      events.return().catch(() => {});
    }
  }

  async #reconnect() {
    if (!this.streamId) throw new LostError();
    this.onConnection("lost");
    for (const delay of DELAYS_MS) {
      await wait(delay, this.controller.signal);
      try {
        const response = await this.#resume();
        this.onConnection("open");
        return response;
      } catch (error) {
        if (error.name === "AbortError") throw error;
        if (error instanceof ServerError && error.status < 500 && error.status !== 429) throw new LostError();
      }
    }
    throw new LostError();
  }
}

/** Ends early when the network comes back. */
function wait(ms, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(done, ms);
    function done() {
      clearTimeout(timer);
      window.removeEventListener("online", done);
      signal.removeEventListener("abort", aborted);
      resolve();
    }
    function aborted() {
      done();
      reject(signal.reason);
    }
    window.addEventListener("online", done);
    signal.addEventListener("abort", aborted);
  });
}
