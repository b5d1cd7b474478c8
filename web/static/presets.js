// What a conversation is sampled with: the knobs, their ranges, and named sets of them.

/** Each knob of the panel. `fallback`: where the server says nothing about its own default. */
export const KNOBS = [
  {
    name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.05, fallback: 1,
    hint: "0 always takes the likeliest word; higher is freer.",
  },
  {
    name: "top_p", label: "Top p", min: 0.01, max: 1, step: 0.01, fallback: 1,
    hint: "Chooses among the likeliest words that make up this share.",
  },
  {
    name: "top_k", label: "Top k", min: 0, max: 200, step: 1, fallback: 0,
    hint: "Chooses among so many words; 0 is off.",
  },
  {
    name: "min_p", label: "Min p", min: 0, max: 1, step: 0.01, fallback: 0,
    hint: "Drops words less likely than this share of the likeliest.",
  },
  {
    name: "repetition_penalty", label: "Repetition penalty", min: 0.5, max: 2, step: 0.01, fallback: 1,
    hint: "Above 1 makes words that were used less likely.",
  },
  {
    name: "presence_penalty", label: "Presence penalty", min: -2, max: 2, step: 0.05, fallback: 0,
    hint: "Against words that the answer has used at all.",
  },
  {
    name: "frequency_penalty", label: "Frequency penalty", min: -2, max: 2, step: 0.05, fallback: 0,
    hint: "Against words each time that the answer has used them.",
  },
];

/** Plain numbers: empty = the server's choice. */
export const NUMBERS = [
  {
    name: "max_tokens", label: "Longest answer", min: 1, max: 1_000_000,
    hint: "In tokens; empty goes to the end of the context.",
  },
  {
    name: "seed", label: "Seed", min: 0, max: 2 ** 32 - 1,
    hint: "The same seed gives the same answer; empty is new each time.",
  },
];

const KNOWN = new Map([...KNOBS, ...NUMBERS].map((field) => [field.name, field]));
const KEY = "llm_decoder.presets";
const LAST = "llm_decoder.settings";
const MAX_SYSTEM = 100_000;

export const BUILT_IN = [
  { name: "The model's own", sampling: {} },
  { name: "Precise", sampling: { temperature: 0 } },
  { name: "Balanced", sampling: { temperature: 0.7, top_p: 0.9 } },
  { name: "Inventive", sampling: { temperature: 1.1, min_p: 0.05 } },
];

export const emptySettings = () => ({ system: "", sampling: {} });

/** Settings out of anything: a file, the browser's storage. Unknown names and numbers out of range are left out. */
export function readSettings(given) {
  const settings = emptySettings();
  if (typeof given?.system === "string") settings.system = given.system.slice(0, MAX_SYSTEM);
  for (const [name, value] of Object.entries(given?.sampling ?? {})) {
    const field = KNOWN.get(name);
    if (field && Number.isFinite(value) && value >= field.min && value <= field.max) settings.sampling[name] = value;
  }
  return settings;
}

function readKept(key) {
  try {
    return JSON.parse(localStorage.getItem(key));
  } catch {
    return null;
  }
}

function keep(key, value) {
  try {
    localStorage.setItem(key, JSON.stringify(value));
  } catch {
    // A browser that keeps nothing: they last as long as the page.
  }
}

/** [{name, system, sampling}] that the reader has saved. */
export function savedPresets() {
  const kept = readKept(KEY);
  if (!Array.isArray(kept)) return [];
  return kept
    .filter((preset) => typeof preset?.name === "string" && preset.name)
    .map((preset) => ({ name: preset.name.slice(0, 60), ...readSettings(preset) }));
}

export function savePreset(name, settings) {
  keep(KEY, [...savedPresets().filter((preset) => preset.name !== name), { name, ...readSettings(settings) }]);
}

export function removePreset(name) {
  keep(KEY, savedPresets().filter((preset) => preset.name !== name));
}

/** What a new conversation begins with: what the last one was told. */
export const lastSettings = () => readSettings(readKept(LAST));
export const keepSettings = (settings) => keep(LAST, settings);
