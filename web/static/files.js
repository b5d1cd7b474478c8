// Conversations as a JSON file, out and in. What comes in is somebody's file: only what is known is taken from it.
import { element } from "./dom.js";
import { newId, now } from "./ids.js";
import { readSettings } from "./presets.js";

const FORMAT = "llm_decoder.conversations";
const VERSION = 1;
const MAX_BYTES = 200 * 1024 * 1024;
const ROLES = new Set(["user", "assistant"]);

/** entries: [{conversation, messages}] */
export function download(entries, name) {
  const value = {
    format: FORMAT,
    version: VERSION,
    exported: new Date().toISOString(),
    conversations: entries.map(({ conversation, messages }) => ({ ...conversation, messages })),
  };
  saveFile(JSON.stringify(value, null, 1), "application/json", name);
}

export function saveFile(text, type, name) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** "A walk in the rain" -> "a-walk-in-the-rain.json" */
export function fileName(title) {
  const plain = title.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60);
  return `${plain || "conversation"}.json`;
}

/** [{conversation, messages}] with new ids; throws Error with a sentence for the reader. */
export async function readFile(file) {
  if (file.size > MAX_BYTES) throw new Error(`${file.name} has more than 200 MB.`);
  let value;
  try {
    value = JSON.parse(await file.text());
  } catch {
    throw new Error(`${file.name} is not a JSON file.`);
  }
  if (value?.format !== FORMAT || !Array.isArray(value.conversations)) {
    throw new Error(`${file.name} holds no conversations of this page.`);
  }
  if (value.version !== VERSION) throw new Error(`${file.name} was written by another version of this page.`);
  return value.conversations.map(readConversation);
}

const text = (value, limit = 10_000_000) => (typeof value === "string" ? value.slice(0, limit) : "");
/** Later than now is not possible, and would stand first for ever. */
const time = (value) => (Number.isFinite(value) ? Math.max(0, Math.min(value, now())) : now());

function readConversation(given) {
  if (typeof given !== "object" || given === null || !Array.isArray(given.messages)) {
    throw new Error("A conversation in this file has no messages.");
  }
  const id = newId();
  const ids = new Map(given.messages.map((message) => [message?.id, newId()]));
  const messages = given.messages
    .filter((message) => ROLES.has(message?.role))
    .map((message) => ({
      id: ids.get(message.id),
      conversation: id,
      parent: ids.get(message.parent) ?? null,
      role: message.role,
      content: text(message.content),
      reasoning: text(message.reasoning),
      created: time(message.created),
      state: message.state === "stopped" ? "stopped" : "done",
      stats: readStats(message.stats),
    }));
  const conversation = {
    id,
    title: text(given.title, 200) || "Imported conversation",
    created: time(given.created),
    updated: time(given.updated),
    leaf: ids.get(given.leaf) ?? null,
    settings: readSettings(given.settings),
  };
  return { conversation, messages };
}

function readStats(given) {
  const stats = {};
  for (const name of ["model", "finishReason"]) {
    if (typeof given?.[name] === "string") stats[name] = given[name].slice(0, 200);
  }
  for (const name of ["tokens", "tokensPerS", "firstTokenS", "contextUsed", "contextMax", "thoughtS"]) {
    if (Number.isFinite(given?.[name])) stats[name] = given[name];
  }
  return stats;
}
