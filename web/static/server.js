// Calls to the server that the page came from. Paths are relative: the page also works behind a proxy's prefix.

/** An answer that refuses, as the server words it. */
export class ServerError extends Error {
  constructor(status, error = {}, retryAfterS = null) {
    super(error.message || `The server answered with status ${status}.`);
    this.status = status;
    this.code = error.code ?? null;
    this.param = error.param ?? null;
    this.retryAfterS = retryAfterS;
  }
}

/** The server cannot be reached. */
export class NetworkError extends Error {
  constructor() {
    super("The server cannot be reached. Is it still running?");
  }
}

let csrf = null;
let unlock = async () => false;

/** `ask` is called when a key is needed; it resolves to whether the page may go on. */
export function whenLocked(ask) {
  unlock = ask;
}

/** A response that is ok. Throws ServerError, NetworkError, or AbortError. A locked server is asked again, once. */
export async function call(method, path, { body, headers = {}, signal, isRetry = false } = {}) {
  const all = { ...headers };
  if (body !== undefined) all["content-type"] = "application/json";
  if (csrf && method !== "GET") all["x-csrf-token"] = csrf;
  let response;
  try {
    response = await fetch(path, {
      method,
      headers: all,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      credentials: "same-origin",
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new NetworkError();
  }
  if (response.ok) return response;
  const error = await refusal(response);
  const isLocked = response.status === 401 || (response.status === 403 && csrf !== null);
  if (isLocked && !isRetry && path !== "login" && (await unlock(error))) {
    return call(method, path, { body, headers, signal, isRetry: true });
  }
  throw error;
}

async function refusal(response) {
  let told = {};
  try {
    told = (await response.json()).error ?? {};
  } catch {
    // Not ours: a proxy's page, say. The status has to do.
  }
  const retryAfter = Number.parseInt(response.headers.get("retry-after"), 10);
  return new ServerError(response.status, told, Number.isFinite(retryAfter) ? retryAfter : null);
}

/** {needs_key, csrf, state, model, max_model_len, defaults, has_reranker}; the last four are null while the model is being loaded */
export async function readSession() {
  const session = await (await call("GET", "page/session")).json();
  csrf = session.csrf ?? null;
  return session;
}

export async function logIn(key) {
  await call("POST", "login", { body: { key } });
  return readSession();
}

export async function logOut() {
  await call("POST", "logout", { body: {} });
  csrf = null;
}

/** The HTML of each block of a finished text, which the server has made safe. */
export async function renderBlocks(text, signal) {
  return (await (await call("POST", "page/render", { body: { text }, signal })).json()).blocks;
}
