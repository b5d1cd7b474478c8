// One search on its way: its tree as it grows, its answers, and both as lines of a file.
import { call } from "./server.js";
import { readEvents } from "./sse.js";

const SCHEMA = 1; // of search/run_file.py
const PARAMS = ["width", "n", "length_penalty", "method", "max_tokens", "scorer", "alpha", "normalise"];
const CANDIDATE = ["text", "beam_score", "rerank_score", "final_score", "finish_reason"];

/** The server ended the stream before the search was over. */
class CutError extends Error {
  constructor() {
    super("The connection was lost, and the server has stopped this search.");
  }
}

export class SearchRun {
  /** request: the body of /stream_chat_beam. prompt: what was asked, as it is shown. */
  constructor({ request, prompt, model, onChange }) {
    this.request = request;
    this.prompt = prompt;
    this.model = model;
    this.onChange = onChange;
    this.nodes = [{ id: 0, parent: -1, step: 0, logprob: 0, cum_logprob: 0, score: 0, state: "live", text: "" }];
    this.live = [];
    this.step = 0;
    this.nFinished = 0;
    this.candidates = []; // the best first
    this.isRunning = false;
    this.isStopped = false;
    this.id = "";
    this.promptHash = "";
    this.created = Math.floor(Date.now() / 1000);
    this.controller = new AbortController();
  }

  /** Resolves when the search is over or was stopped. Throws ServerError, NetworkError, CutError. */
  async run() {
    this.isRunning = true;
    this.onChange();
    try {
      const { signal } = this.controller;
      const response = await call("POST", "stream_chat_beam", { body: this.request, signal });
      this.id = response.headers.get("x-request-id") ?? "";
      await this.#read(response.body);
    } catch (error) {
      if (!this.isStopped) throw error;
    } finally {
      this.isRunning = false;
      this.onChange();
    }
  }

  /** The server ends a search whose reader hangs up. What was seen of it stays. */
  stop() {
    this.isStopped = true;
    this.controller.abort();
  }

  async #read(body) {
    for await (const { event, data } of readEvents(body)) {
      if (data === "[DONE]") return;
      this.#take(event, JSON.parse(data));
      this.onChange();
    }
    throw new CutError();
  }

  #take(event, data) {
    if (data.error) throw new Error(data.error.message ?? "The search failed.");
    if (event === "beam.step") {
      this.step = data.step;
      this.nFinished = data.finished;
      this.live = data.live;
      this.nodes.push(...data.nodes);
    } else if (event === "beam.prune") {
      Object.assign(this.nodes[data.node], { state: "pruned", reason: data.reason });
    } else if (data.candidates) {
      this.candidates = data.candidates;
      this.promptHash = data.prompt_hash;
      this.live = [];
    }
  }

  // -- what can be asked of it

  /** From the first token of the answer to this one. */
  path(id) {
    const path = [];
    for (let node = this.nodes[id]; node.id !== 0; node = this.nodes[node.parent]) path.push(node);
    return path.reverse();
  }

  textTo(id) {
    return this.path(id).map(({ text }) => text).join("");
  }

  /** As JSON, an object a line: search/run_file.py reads it. */
  lines() {
    const params = Object.fromEntries(PARAMS.filter((name) => name in this.request).map((n) => [n, this.request[n]]));
    const header = {
      ...{ type: "run", schema: SCHEMA, id: this.id, model: this.model, prompt_hash: this.promptHash },
      ...{ prompt: this.prompt, params, seed: null, created: this.created },
    };
    const nodes = this.nodes.slice(1).map((node) => ({ type: "node", ...node }));
    const candidates = this.candidates.map((candidate) => ({
      ...{ type: "candidate", leaf: candidate.tree_leaf },
      ...Object.fromEntries(CANDIDATE.map((name) => [name, candidate[name]])),
    }));
    return [header, ...nodes, ...candidates].map((line) => `${JSON.stringify(line)}\n`).join("");
  }
}
