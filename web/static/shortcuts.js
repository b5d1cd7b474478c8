// Keys that work wherever the reader is. Letters need a modifier: they never take what somebody writes or dictates.
import { byId, element } from "./dom.js";

const isMac = /Mac|iPhone|iPad/.test(navigator.platform);

/** mod: Ctrl, or Command on a Mac. code: the key by its place, as Option changes letters on a Mac. */
export const SHORTCUTS = [
  { action: "new", keys: { mod: true, shift: true, code: "KeyO" }, label: "New conversation" },
  { action: "search", keys: { mod: true, code: "KeyK" }, label: "Search conversations" },
  { action: "sidebar", keys: { mod: true, code: "KeyB" }, label: "Show or hide conversations" },
  { action: "settings", keys: { mod: true, code: "Period" }, label: "Show or hide settings" },
  { action: "regenerate", keys: { alt: true, code: "KeyR" }, label: "Regenerate the answer" },
  { action: "continue", keys: { alt: true, code: "KeyG" }, label: "Continue the answer" },
  { action: "edit", keys: { alt: true, code: "KeyE" }, label: "Edit your last message" },
  { action: "copy", keys: { alt: true, code: "KeyC" }, label: "Copy the answer" },
  { action: "previous", keys: { alt: true, code: "Comma" }, label: "Previous version of the answer" },
  { action: "next", keys: { alt: true, code: "Period" }, label: "Next version of the answer" },
  { action: "view", keys: { alt: true, code: "KeyS" }, label: "Show the search, or the chat" },
  { action: "help", keys: { mod: true, code: "Slash" }, label: "This help" },
];

const ELSEWHERE = [
  { shown: ["Enter"], label: "Send" },
  { shown: ["Shift", "Enter"], label: "New line" },
  { shown: ["Esc"], label: "Stop the answer; close what is open" },
  { shown: ["↑"], label: "In an empty field: edit your last message" },
];

function matches(event, { mod = false, alt = false, shift = false, code }) {
  const isMod = isMac ? event.metaKey : event.ctrlKey;
  return event.code === code && isMod === mod && event.altKey === alt && event.shiftKey === shift;
}

function shownKeys({ mod, alt, shift, code }) {
  const key = { Period: ".", Comma: ",", Slash: "/" }[code] ?? code.replace("Key", "");
  return [mod && (isMac ? "⌘" : "Ctrl"), alt && (isMac ? "⌥" : "Alt"), shift && "Shift", key].filter(Boolean);
}

/** actions: by the names above, and `escape`. */
export function listen(actions) {
  document.addEventListener("keydown", (event) => {
    if (event.isComposing || event.defaultPrevented) return;
    const isInDialog = document.querySelector("dialog[open]") !== null;
    if (event.key === "Escape" && !isInDialog) return actions.escape(event);
    const found = SHORTCUTS.find(({ keys }) => matches(event, keys));
    if (!found || (isInDialog && found.action !== "help")) return;
    event.preventDefault();
    actions[found.action]();
  });
}

export function fillHelp() {
  const rows = [...ELSEWHERE, ...SHORTCUTS.map(({ keys, label }) => ({ shown: shownKeys(keys), label }))];
  byId("help-list").replaceChildren(
    ...rows.flatMap(({ shown, label }) => [
      element("dt", {}, label),
      element("dd", {}, ...shown.map((key) => element("kbd", {}, key))),
    ]),
  );
}
