// Short notices in the corner; errors stay until they are read or put away.
import { byId, element, iconButton } from "./dom.js";

const SHORT_MS = 7000;
const LONG_MS = 15_000;

function show(text, { isError = false, action = null }) {
  const same = [...byId("toasts").children].find((each) => each.firstElementChild.textContent === text);
  if (same && !action) return same.dispatchEvent(new Event("pointerleave")); // it stays a while longer
  const close = () => toast.remove();
  const toast = element(
    "div",
    { class: isError ? "toast is-error" : "toast", role: isError ? "alert" : "status" },
    element("span", {}, text),
    action &&
      element(
        "button",
        {
          type: "button",
          class: "toast-action",
          on: {
            click: () => {
              close();
              action.run();
            },
          },
        },
        action.label,
      ),
    iconButton("close", "Dismiss", close),
  );
  const all = byId("toasts");
  all.append(toast);
  while (all.children.length > 4) all.firstElementChild.remove();
  let timer;
  const wait = () => {
    clearTimeout(timer);
    timer = setTimeout(close, isError ? LONG_MS : SHORT_MS);
  };
  for (const kind of ["pointerenter", "focusin"]) toast.addEventListener(kind, () => clearTimeout(timer));
  for (const kind of ["pointerleave", "focusout"]) toast.addEventListener(kind, wait);
  wait();
}

export const tell = (text, action = null) => show(text, { action });

export function complain(error) {
  const again = error.retryAfterS ? `. Try again in ${error.retryAfterS} s.` : "";
  show(`${plain(error.message ?? String(error)).replace(/\.$/, again ? "" : ".")}${again}`, { isError: true });
}

/** "[server] the model is ..." -> "The model is ..." */
export function plain(message) {
  const text = message.replace(/^\[[\w ./-]+\]\s*/, "");
  return text.charAt(0).toUpperCase() + text.slice(1);
}
