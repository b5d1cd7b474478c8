// The picture of a search as SVG. Its colours are search.css's; a file of it has those that it is shown in.
import { FONT, FONT_SIZE, GAP, LABEL, layOut, LINE, SMALL } from "./search_layout.js";

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = 20;
// Of log probabilities: a token has the tint of the first bound that it reaches, the last one below all.
const BOUNDS = [-0.05, -0.2, -0.5, -1, -2, -3.5, -5];
const KEPT = ["fill", "stroke", "fill-opacity", "stroke-width", "font-weight"]; // in a file

function shape(tag, attributes, text = null) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null) made.setAttribute(name, typeof value === "number" ? String(Math.round(value * 100) / 100) : value);
  }
  if (text !== null) made.textContent = text;
  return made;
}

const tintOf = (logprob) => {
  const found = BOUNDS.findIndex((bound) => logprob >= bound);
  return `p${found < 0 ? BOUNDS.length : found}`;
};

/** {svg, axis}: axis is the x of the prompt. chosen: the node that is marked, or null. */
export function draw(run, chosen) {
  const layout = layOut(run);
  const width = layout.right - layout.left + 2 * MARGIN;
  const height = layout.height + 2 * MARGIN;
  const dx = MARGIN - layout.left;
  const svg = shape("svg", { xmlns: SVG, width, height, viewBox: `0 0 ${Math.round(width)} ${Math.round(height)}` });
  svg.setAttribute("class", "search-picture");
  svg.setAttribute("font-family", FONT);
  svg.append(shape("rect", { class: "f-page", width: "100%", height: "100%" }));
  const { cards } = layout;
  // What matters more is drawn over what matters less.
  const ordered = cards.slice(1).sort((a, b) => a.isBest - b.isBest || a.isAlive - b.isAlive);
  svg.append(...ordered.map((card) => line(cards[card.parent], card, dx)));
  for (const card of cards) svg.append(...drawCard(card, dx, chosen));
  return { svg, axis: dx };
}

/** Down, over, and down again, its corners rounded. */
function line(parent, card, dx) {
  const [x, y, toX, toY] = [dx + parent.x, MARGIN + parent.y + parent.height, dx + card.x, MARGIN + card.y];
  const turn = MARGIN + parent.end + GAP / 2;
  const radius = Math.max(0, Math.min(6, Math.abs(toX - x) / 2, turn - y, toY - turn));
  const side = Math.sign(toX - x) * radius;
  const bend = radius ? `V${turn - radius}q0 ${radius} ${side} ${radius}H${toX - side}q${side} 0 ${side} ${radius}` : "";
  const kind = card.isBest ? "best" : card.isAlive ? "line" : "pale";
  return shape("path", { class: `s-${kind}`, fill: "none", d: `M${x} ${y}${bend}V${toY}` });
}

function* drawCard(card, dx, chosen) {
  const left = dx + card.x - card.width / 2;
  const top = MARGIN + card.y;
  const isPrompt = card.parent < 0;
  const frame = { x: left, y: top, width: card.width, height: card.height, rx: 4 };
  yield shape("rect", { class: "f-page", ...frame });
  const isAnswer = card.isLeaf && card.nodes.at(-1).state === "finished";
  const edge = card.isBest ? "best" : isAnswer ? "done" : card.isAlive ? "edge" : "pale";
  const cells = card.cells.map((cell) => {
    const { node } = cell;
    const [x, y] = [left + cell.x, top + cell.line * LINE];
    const group = shape("g", { class: node.id === chosen ? "cell is-chosen" : "cell", "data-node": node.id });
    const tint = isPrompt ? "f-page" : `f-${tintOf(node.logprob)}${card.isAlive ? "" : " is-pale"}`;
    group.append(shape("rect", { class: tint, x, y: y + 1, width: cell.width, height: LINE - 2, rx: 1.5 }));
    const bare = cell.text.trim();
    const space = cell.width * ((cell.text.length - cell.text.trimStart().length) / (cell.text.length || 1));
    const kind = isPrompt || !card.isAlive ? "f-faint" : "f-ink";
    const words = { class: kind, x: x + (cell.width + space) / 2, y: y + LINE - 5, "font-size": FONT_SIZE };
    group.append(shape("text", { ...words, "text-anchor": "middle" }, bare));
    return group;
  });
  yield* cells;
  yield shape("rect", { class: `s-${edge} is-frame`, fill: "none", ...frame });
  if (!card.label) return;
  const kind = card.rank === 0 ? "f-best is-strong" : card.rank !== null ? "f-done" : "f-faint";
  const words = { class: kind, x: dx + card.x, y: top + card.height + LABEL - 3, "font-size": SMALL };
  yield shape("text", { ...words, "text-anchor": "middle" }, card.label);
}

/** The picture as a file of its own. */
export function svgFile(svg) {
  const copy = svg.cloneNode(true);
  const shown = [...svg.querySelectorAll("*")];
  [...copy.querySelectorAll("*")].forEach((node, at) => {
    const looks = getComputedStyle(shown[at]);
    if (node.tagName !== "g") for (const name of KEPT) node.setAttribute(name, looks.getPropertyValue(name));
    node.removeAttribute("class");
  });
  copy.removeAttribute("class");
  return `${new XMLSerializer().serializeToString(copy)}\n`;
}
