// What is being written and not rendered yet: plain text, in the shape that it will have, so that little moves when
// the server's rendering takes its place.
import { codeFrame } from "./blocks.js";
import { element } from "./dom.js";

const FENCE = /^ {0,3}(`{3,}|~{3,})[^\S\n]*([^\s`]*)[^\n]*(\n|$)/;
const HEADING = /^ {0,3}(#{1,6})[^\S\n]+/;
const LIST = /^ {0,3}(?:[-*+]|\d{1,9}[.)])[^\S\n]/;
const ITEM = /^(\s*)(?:[-*+]|(\d{1,9}[.)]))[^\S\n]+/;

const TABLE = /^[^\n]*\|[^\n]*\n {0,3}(?=[^\n]*\|)[-:|\t ]*-[-:|\t ]*\n/;

function kindOf(text) {
  const fence = FENCE.exec(text);
  if (fence) return { kind: fence[3] ? `code:${fence[2]}` : "code", fence };
  const heading = HEADING.exec(text);
  if (heading) return { kind: `heading:${heading[1].length}`, heading };
  if (LIST.test(text)) return { kind: "list" };
  return { kind: TABLE.test(text) ? "table" : "text" };
}

/** The paragraphs, lists, ... of a text: what blank lines and fences part. */
function parts(text) {
  const found = [];
  let rest = text.replace(/^\s*\n/, "");
  while (rest.trim() !== "") {
    const fence = FENCE.exec(rest);
    let end;
    if (fence) {
      const closing = new RegExp(`\\n {0,3}${fence[1][0]}{${fence[1].length},}[^\\S\\n]*(?:\\n|$)`);
      const found = closing.exec(rest.slice(fence[0].length - 1));
      end = found ? fence[0].length - 1 + found.index + found[0].length : rest.length;
    } else {
      const gap = /\n[^\S\n]*\n|\n(?= {0,3}(?:`{3}|~{3}))/.exec(rest);
      end = gap ? gap.index + gap[0].length : rest.length;
    }
    found.push(rest.slice(0, end));
    rest = rest.slice(end).replace(/^(?:[^\S\n]*\n)+/, "");
  }
  return found;
}

export class OpenText {
  constructor() {
    this.root = element("div", { class: "open-text" });
    this.blocks = [];
  }

  /** Shows `text`, all that is open; "" shows nothing. */
  show(text) {
    const found = parts(text);
    this.root.hidden = found.length === 0;
    while (this.blocks.length > found.length) this.blocks.pop().root.remove();
    found.forEach((part, at) => {
      if (!this.blocks[at]) {
        this.blocks.push(new OpenBlock());
        this.root.append(this.blocks[at].root);
      }
      this.blocks[at].show(part);
    });
  }
}

class OpenBlock {
  constructor() {
    this.root = element("div", { class: "open-block" });
    this.kind = null;
  }

  show(begun) {
    const found = kindOf(begun);
    if (found.kind !== this.kind) {
      this.kind = found.kind;
      this.shown = "";
      this.#begin(found);
    }
    if (found.fence) this.#write(withoutClosing(begun.slice(found.fence[0].length), found.fence[1]));
    else if (found.heading) this.#write(begun.slice(found.heading[0].length).trimEnd());
    else if (found.kind === "list") this.#writeItems(begun.trimEnd());
    else if (found.kind === "table") this.#writeRows(begun.trimEnd().split("\n"));
    else this.#write(begun.trimEnd());
  }

  #begin({ kind, fence, heading }) {
    this.text = document.createTextNode("");
    if (fence) {
      const frame = codeFrame(fence[3] ? fence[2] : "");
      frame.append(element("pre", { class: "code" }, element("code", {}, this.text)));
      this.root.replaceChildren(frame);
    } else if (heading) {
      this.root.replaceChildren(element(`h${heading[1].length}`, { dir: "auto" }, this.text));
    } else if (kind === "list") {
      this.lines = [];
      this.list = element("div", { class: "open-list", dir: "auto" });
      this.root.replaceChildren(this.list);
    } else if (kind === "table") {
      this.table = element("table", {}, element("thead"), element("tbody"));
      this.root.replaceChildren(element("div", { class: "table-frame" }, this.table));
    } else {
      this.root.replaceChildren(element("p", { class: "open-lines", dir: "auto" }, this.text));
    }
  }

  #write(text) {
    if (text.startsWith(this.shown)) this.text.appendData(text.slice(this.shown.length));
    else this.text.data = text;
    this.shown = text;
  }

  /** A line a row, the second tells where the cells stand; only the last one changes. */
  #writeRows([head, rule, ...lines]) {
    const [thead, tbody] = this.table.children;
    const sides = cells(rule).map((cell) => (!cell.endsWith(":") ? null : cell.startsWith(":") ? "center" : "right"));
    const row = (tag, line) => {
      const found = cells(line);
      return element("tr", {}, ...sides.map((side, at) => element(tag, { class: side }, found[at] ?? "")));
    };
    if (!thead.firstChild) thead.append(row("th", head));
    for (let i = Math.max(0, tbody.children.length - 1); i < lines.length; i++) {
      if (tbody.children[i]) tbody.children[i].replaceWith(row("td", lines[i]));
      else tbody.append(row("td", lines[i]));
    }
  }

  /** A line an item; only the last one changes. */
  #writeItems(text) {
    const lines = text.split("\n");
    for (let i = Math.max(0, this.lines.length - 1); i < lines.length; i++) {
      const item = ITEM.exec(lines[i]);
      const node = this.lines[i] ?? element("div", { class: "open-item" });
      if (!this.lines[i]) {
        this.lines.push(node);
        this.list.append(node);
      }
      node.style.setProperty("--depth", String(Math.floor((item?.[1].length ?? 0) / 2)));
      node.replaceChildren(
        element("span", { class: "open-mark" }, item ? item[2] || "•" : ""),
        element("span", {}, item ? lines[i].slice(item[0].length) : lines[i].trim()),
      );
    }
  }
}

/** "| a | b |" -> ["a", "b"] */
function cells(line) {
  return line.trim().replace(/^\|/, "").replace(/\|$/, "").split(/(?<!\\)\|/).map((cell) => cell.trim());
}

/** Code without the fence that ends it, and without what may be the beginning of one. */
function withoutClosing(text, fence) {
  const end = text.lastIndexOf("\n");
  const last = text.slice(end + 1).trim();
  const isFence = last !== "" && [...last].every((sign) => sign === fence[0]);
  return (isFence ? text.slice(0, Math.max(end, 0)) : text).replace(/\n$/, "");
}
