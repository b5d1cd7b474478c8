// How answers of this conversation are drawn: system prompt, presets, sampling.
import { byId, element, iconButton } from "./dom.js";
import { BUILT_IN, KNOBS, NUMBERS, readSettings, removePreset, savedPresets, savePreset } from "./presets.js";

export class SettingsPanel {
  constructor(chat) {
    this.chat = chat;
    this.defaults = {};
    this.system = byId("system");
    this.preset = byId("preset");
    this.removeButton = byId("preset-delete");
    this.rows = new Map();
    byId("knobs").append(...KNOBS.map((knob) => this.#knob(knob)));
    byId("numbers").append(...NUMBERS.map((field) => this.#number(field)));
    this.system.addEventListener("input", () => this.#change((settings) => (settings.system = this.system.value)));
    this.preset.addEventListener("change", () => this.#take(this.preset.value));
    byId("preset-form").addEventListener("submit", (event) => this.#savePreset(event));
    this.removeButton.addEventListener("click", () => this.#removePreset());
    chat.addEventListener("open", () => this.show());
    this.#listPresets();
    this.show();
  }

  /** What the server samples with where nothing is set. */
  setDefaults(defaults) {
    this.defaults = defaults ?? {};
    this.show();
  }

  #default(field) {
    const value = this.defaults[field.name];
    return Number.isFinite(value) ? value : (field.fallback ?? null);
  }

  #knob(knob) {
    const { name, label, min, max, step, hint } = knob;
    const id = `knob-${name}`;
    const range = element("input", { type: "range", id, min, max, step, "aria-describedby": `${id}-hint` });
    const exact = element("input", { type: "number", class: "exact", min, max, step, "aria-label": `${label}, exact` });
    const reset = iconButton("undo", `${label}: back to the default`, () => this.#set(name, null));
    range.addEventListener("input", () => this.#set(name, range.valueAsNumber));
    exact.addEventListener("change", () => this.#set(name, exact.value === "" ? null : exact.valueAsNumber));
    this.rows.set(name, (value) => {
      const shown = value ?? this.#default(knob);
      range.value = shown;
      exact.value = shown;
      range.style.setProperty("--at", `${((range.value - min) / (max - min)) * 100}%`);
      reset.classList.toggle("is-away", value === undefined);
      row.classList.toggle("is-set", value !== undefined);
    });
    const row = element(
      "div",
      { class: "knob" },
      element("div", { class: "knob-head" }, element("label", { for: id }, label), reset, exact),
      range,
      element("p", { class: "hint", id: `${id}-hint` }, hint),
    );
    return row;
  }

  #number({ name, label, min, max, hint }) {
    const id = `number-${name}`;
    const input = element("input", { type: "number", id, min, max, step: 1, "aria-describedby": `${id}-hint` });
    const read = () => (input.value === "" ? null : Math.round(input.valueAsNumber));
    input.addEventListener("change", () => this.#set(name, read()));
    this.rows.set(name, (value) => {
      input.value = value ?? "";
      input.placeholder = "none";
    });
    return element(
      "div",
      { class: "knob" },
      element("div", { class: "knob-head" }, element("label", { for: id }, label), input),
      element("p", { class: "hint", id: `${id}-hint` }, hint),
    );
  }

  show() {
    const { system, sampling } = this.chat.settings;
    if (this.system.value !== system) this.system.value = system;
    for (const [name, showValue] of this.rows) showValue(sampling[name]);
    this.#showPreset();
  }

  #set(name, value) {
    this.#change(({ sampling }) => {
      if (value === null || !Number.isFinite(value)) delete sampling[name];
      else sampling[name] = value;
    });
  }

  #change(edit) {
    const settings = structuredClone(this.chat.settings);
    edit(settings);
    // At once: a reader who opens another conversation now has changed this one.
    this.chat.changeSettings(readSettings(settings));
    this.show();
  }

  // -- presets

  #all() {
    return [...BUILT_IN, ...savedPresets()];
  }

  #listPresets() {
    const option = ({ name }) => element("option", { value: name }, name);
    const own = savedPresets();
    this.preset.replaceChildren(
      ...BUILT_IN.map(option),
      ...(own.length ? [element("optgroup", { label: "Yours" }, ...own.map(option))] : []),
      element("option", { value: "", hidden: true }, "Custom"),
    );
  }

  #showPreset() {
    const same = (a, b) => JSON.stringify(Object.entries(a).sort()) === JSON.stringify(Object.entries(b).sort());
    const { system, sampling } = this.chat.settings;
    const found = this.#all().findLast(
      (preset) => same(preset.sampling, sampling) && (preset.system === undefined || preset.system === system),
    );
    this.preset.value = found?.name ?? "";
    this.removeButton.hidden = !savedPresets().some(({ name }) => name === this.preset.value);
  }

  #take(name) {
    const preset = this.#all().findLast((each) => each.name === name);
    if (!preset) return;
    this.#change((settings) => {
      settings.sampling = { ...preset.sampling };
      if (preset.system !== undefined) settings.system = preset.system;
    });
  }

  #savePreset(event) {
    event.preventDefault();
    const field = byId("preset-name");
    const name = field.value.trim();
    if (!name) return field.focus();
    savePreset(name, this.chat.settings);
    field.value = "";
    this.#listPresets();
    this.show();
  }

  #removePreset() {
    removePreset(this.preset.value);
    this.#listPresets();
    this.show();
    this.preset.focus();
  }
}
