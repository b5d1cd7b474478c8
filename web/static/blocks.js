// The finished blocks of an answer: HTML that the server has rendered and made safe (markdown-it-py, Pygments, nh3).
// This is the only file that takes HTML; the page's Content-Security-Policy stands behind it.
import { copyText, element, icon } from "./dom.js";

/** One block's HTML -> its nodes, with what a page adds: a head over code, a frame around wide tables. */
export function blockNodes(html) {
  const template = document.createElement("template");
  template.innerHTML = html;
  const content = template.content;
  for (const pre of [...content.querySelectorAll("pre")]) frameCode(pre);
  for (const node of content.children) if (node.tagName !== "FIGURE") node.dir = "auto"; // as its first letter is read
  for (const table of [...content.querySelectorAll("table")]) {
    const frame = element("div", { class: "table-frame", tabindex: "0", role: "region", "aria-label": "Table" });
    table.replaceWith(frame);
    frame.append(table);
  }
  return [...content.childNodes];
}

function frameCode(pre) {
  const frame = codeFrame(pre.dataset.language ?? "");
  pre.replaceWith(frame);
  frame.append(pre);
  pre.tabIndex = 0; // it scrolls sideways, with the keyboard too
}

/** What stands around code, finished or not: its language and a button that copies it. */
export function codeFrame(language) {
  const label = element("span", { class: "code-language" }, language || "text");
  const button = element(
    "button",
    { type: "button", class: "code-copy", "aria-label": "Copy code", on: { click: () => copyCode(frame, button) } },
    icon("copy"),
    element("span", {}, "Copy"),
  );
  const frame = element("figure", { class: "code-frame" }, element("figcaption", {}, label, button));
  return frame;
}

async function copyCode(frame, button) {
  const isCopied = await copyText(frame.querySelector("pre").textContent);
  const label = button.lastElementChild;
  label.textContent = isCopied ? "Copied" : "Not copied";
  setTimeout(() => {
    label.textContent = "Copy";
  }, 1600);
}
