// Where everything stands in the picture of a search. Time goes down; tokens that follow each other without a branch are
// one card. Cards below a branch begin at the height of their step. The branch of the best answer goes straight down,
// the others stand where their outlines (Reingold and Tilford 1981) fit beside it.

export const FONT_SIZE = 12;
export const SMALL = 10; // labels
export const FONT = '"DejaVu Sans Mono", Menlo, "Cascadia Mono", Consolas, "Liberation Mono", monospace';
export const LINE = 18; // height of a line of tokens
export const GAP = 16; // between a card and those below it
export const LABEL = 15; // height of the label under a leaf
const WRAP = 132; // width of a line of tokens
const MAX_CHARS = 18; // of a token, and of what is shown of the prompt
const PAD = 5;
const BESIDE = 10; // between cards that stand side by side
const BIN = 2; // height of a step of an outline

const SIGNS = { "\n": "↵", "\r": "↵", "\u2028": "↵", "\u2029": "↵", "\t": "⇥", "\u200c": "", "\u200d": "" };
const UNSEEN = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu; // they could turn what stands around them

const paint = document.createElement("canvas").getContext("2d");
const widths = new Map();

function widthOf(text, size) {
  const key = `${size} ${text}`;
  if (!widths.has(key)) {
    if (widths.size > 20_000) widths.clear();
    paint.font = `${size}px ${FONT}`;
    widths.set(key, paint.measureText(text).width);
  }
  return widths.get(key);
}

export const visible = (text) => text.replace(UNSEEN, (sign) => SIGNS[sign] ?? "�");

function shown(node) {
  const text = visible(node.text);
  if (text === "") return `⟨${node.token_id}⟩`;
  if (text.trim() === "") return "␣".repeat(Math.min(text.length, MAX_CHARS));
  return text.length > MAX_CHARS ? `${text.slice(0, MAX_CHARS - 1)}…` : text;
}

/** {cards, left, right, height}; each card behind its parent, the first is the prompt's. */
export function layOut(run) {
  const cards = cardsOf(run);
  const prompt = visible(run.prompt.trim().replace(/\s+/g, " ")) || "prompt";
  fill(cards[0], [prompt.length > MAX_CHARS ? `…${prompt.slice(1 - MAX_CHARS)}` : prompt]);
  for (const card of cards.slice(1)) fill(card, card.nodes.map(shown));
  placeInTime(cards);
  placeBeside(cards);
  const half = (card) => Math.max(card.width, card.labelWidth) / 2;
  return {
    cards,
    left: Math.min(...cards.map((card) => card.x - half(card))),
    right: Math.max(...cards.map((card) => card.x + half(card))),
    height: Math.max(...cards.map((card) => card.y + card.height + (card.label ? LABEL : 0))),
  };
}

/** The tree cut at its branches. */
function cardsOf(run) {
  const { nodes } = run;
  const children = nodes.map(() => []);
  for (const node of nodes.slice(1)) children[node.parent].push(node);
  const ranks = new Map(run.candidates.map((candidate, rank) => [candidate.tree_leaf, rank]));
  const isAlive = nodes.map((node) => children[node.id].length === 0 && node.state !== "pruned");
  const best = nodes.map((node) => ranks.get(node.id) ?? Infinity);
  const depth = nodes.map((node) => node.step);
  for (const { id, parent } of nodes.slice(1).reverse()) {
    isAlive[parent] ||= isAlive[id];
    best[parent] = Math.min(best[parent], best[id]);
    depth[parent] = Math.max(depth[parent], depth[id]);
  }
  const compare = (a, b) =>
    (best[a.id] === best[b.id] ? 0 : best[a.id] - best[b.id]) ||
    isAlive[b.id] - isAlive[a.id] ||
    depth[b.id] - depth[a.id] ||
    b.score - a.score;
  const cardOf = (members, parent) => {
    const last = members.at(-1);
    const isLeaf = children[last.id].length === 0 && last.id !== 0;
    const rank = ranks.get(last.id) ?? null;
    const label = isLeaf ? labelOf(run, last, rank) : "";
    const isBest = best[members[0].id] === 0;
    const known = { isLeaf, isBest, rank, label, isAlive: isAlive[members[0].id] };
    return { nodes: members, parent, x: 0, y: 0, end: 0, labelWidth: widthOf(label, SMALL), ...known };
  };
  const cards = [cardOf([nodes[0]], -1)];
  for (let number = 0; number < cards.length; number++) {
    for (const first of children[cards[number].nodes.at(-1).id].sort(compare)) {
      const members = [first];
      while (children[members.at(-1).id].length === 1) members.push(children[members.at(-1).id][0]);
      cards.push(cardOf(members, number));
    }
  }
  return cards;
}

function labelOf(run, leaf, rank) {
  if (rank === null) return leaf.reason || (leaf.state === "live" ? "" : leaf.state);
  const { final_score: final, beam_score: beam } = run.candidates[rank];
  return `${rank === 0 ? "★ " : ""}${rank + 1}: ${(final ?? beam).toFixed(3)}`;
}

/** Wraps the tokens into lines. */
function fill(card, texts) {
  let line = 0;
  let at = 0;
  let widest = 8;
  card.cells = texts.map((whole, number) => {
    if (at && at + widthOf(whole, FONT_SIZE) > WRAP) [line, at] = [line + 1, 0];
    const text = at ? whole : whole.trimStart(); // the space before a line's first word is no part of the picture
    const width = Math.max(8, widthOf(text, FONT_SIZE));
    const cell = { node: card.nodes[number], text, x: PAD + at, width, line };
    at += width;
    widest = Math.max(widest, at);
    return cell;
  });
  card.width = widest + 2 * PAD;
  card.height = (line + 1) * LINE;
}

function placeInTime(cards) {
  const byEnd = new Map();
  for (const card of cards) {
    const step = card.nodes.at(-1).step;
    if (!byEnd.has(step)) byEnd.set(step, []);
    byEnd.get(step).push(card);
  }
  const ends = new Map();
  let lowest = 0;
  for (const step of [...byEnd.keys()].sort((a, b) => a - b)) {
    for (const card of byEnd.get(step)) {
      if (card.parent >= 0) card.y = ends.get(card.nodes[0].step - 1) + GAP;
      lowest = Math.max(lowest, card.y + card.height);
    }
    ends.set(step, lowest);
    for (const card of byEnd.get(step)) card.end = lowest;
  }
}

/** Gives each card its x: first from its parent's axis, from the leaves up, then from the root's, downward. */
function placeBeside(cards) {
  const children = cards.map(() => []);
  cards.forEach((card, number) => card.parent >= 0 && children[card.parent].push(number));
  const outlines = new Map();
  for (let number = cards.length - 1; number >= 0; number--) {
    let whole = null;
    for (const child of children[number]) {
      const outline = outlines.get(child);
      outlines.delete(child);
      whole = whole ? beside(whole, outline, cards[child]) : outline;
    }
    const own = outlineOf(cards[number]);
    outlines.set(number, whole ? joined(own, whole, 0) : own);
  }
  for (const card of cards) if (card.parent >= 0) card.x += cards[card.parent].x;
}

/** How far a card reaches to both sides, bin by bin, with the room above it that its line takes, and below it a label
 * or the line to what follows. */
function outlineOf(card) {
  const bottom = card.y + card.height;
  const top = Math.max(0, Math.floor((card.y - GAP) / BIN));
  const end = Math.ceil((card.label ? bottom + LABEL : Math.max(bottom, card.end)) / BIN);
  const half = Math.max(card.width, card.labelWidth) / 2;
  const right = Array.from({ length: end - top }, (_, at) => (!card.isLeaf && (top + at) * BIN >= bottom ? 1 : half));
  return { top, right, left: right.map((x) => -x) };
}

/** Both outlines as one, the second moved by dx. */
function joined(a, b, dx) {
  const top = Math.min(a.top, b.top);
  const end = Math.max(a.top + a.left.length, b.top + b.left.length);
  const left = new Array(end - top);
  const right = new Array(end - top);
  for (let at = top; at < end; at++) {
    left[at - top] = Math.min(a.left[at - a.top] ?? Infinity, (b.left[at - b.top] ?? Infinity) + dx);
    right[at - top] = Math.max(a.right[at - a.top] ?? -Infinity, (b.right[at - b.top] ?? -Infinity) + dx);
  }
  return { top, left, right };
}

/** Puts one more branch on that side of its elder siblings where it is nearer to their parent. */
function beside(whole, outline, card) {
  let toRight = -Infinity;
  let toLeft = -Infinity;
  for (let at = 0; at < outline.left.length; at++) {
    const other = at + outline.top - whole.top;
    toRight = Math.max(toRight, (whole.right[other] ?? -Infinity) - outline.left[at]);
    toLeft = Math.max(toLeft, outline.right[at] - (whole.left[other] ?? Infinity));
  }
  card.x = toRight <= toLeft ? toRight + BESIDE : -(toLeft + BESIDE);
  return joined(whole, outline, card.x);
}
