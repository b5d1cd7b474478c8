// Making elements. Text is always text here: the one place that takes HTML is blocks.js.

/** element("button", {class: "x", on: {click}, "aria-label": "..."}, "text", child, ...) */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") {
      for (const [kind, handler] of Object.entries(value)) made.addEventListener(kind, handler);
    } else {
      made.setAttribute(name, value === true ? "" : String(value));
    }
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

/** One of the symbols in index.html. */
export function icon(name) {
  const made = document.createElementNS(SVG, "svg");
  made.setAttribute("class", "icon");
  made.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#icon-${name}`);
  made.append(use);
  return made;
}

/** A button that shows a picture only; `label` is its name and its tooltip. */
export function iconButton(name, label, onClick, attributes = {}) {
  return element(
    "button",
    { type: "button", class: "icon-button", "aria-label": label, title: label, on: { click: onClick }, ...attributes },
    icon(name),
  );
}

export const byId = (id) => document.getElementById(id);

/** Says something to those who hear the page. */
export function announce(text) {
  const region = byId("announcements");
  region.textContent = "";
  requestAnimationFrame(() => {
    region.textContent = text;
  });
}

/** Puts text on the clipboard; whether that worked. */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Browsers keep the clipboard's API from pages that come over plain HTTP from another machine.
    const helper = element("textarea", { class: "visually-hidden", "aria-hidden": "true" });
    helper.value = text;
    document.body.append(helper);
    const focused = document.activeElement;
    helper.select();
    const isCopied = document.execCommand("copy");
    helper.remove();
    focused?.focus?.();
    return isCopied;
  }
}
