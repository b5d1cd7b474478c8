
"use strict";
const { nodes, texts, tints, prompt } = JSON.parse(document.getElementById("data").textContent);
const stage = document.getElementById("stage");
const tree = document.getElementById("tree");
const tip = document.getElementById("tip");
const size = { width: tree.viewBox.baseVal.width, height: tree.viewBox.baseVal.height };
const children = nodes.map(() => []);
nodes.forEach((node, id) => { if (id) children[node.parent].push(id); });
let chosen = 0;

// What is seen: the corner of the page and units a pixel.
const view = { x: 0, y: 0, scale: 1 };

function show() {
  const { clientWidth, clientHeight } = stage;
  tree.setAttribute("viewBox", `${view.x} ${view.y} ${clientWidth * view.scale} ${clientHeight * view.scale}`);
}

function showWhole() {
  const { clientWidth, clientHeight } = stage;
  view.scale = Math.max(size.width / clientWidth, size.height / clientHeight);
  view.x = (size.width - clientWidth * view.scale) / 2;
  view.y = Math.min(0, (size.height - clientHeight * view.scale) / 2);
  show();
}

function showBeginning() {
  const root = placeOf(0);
  view.scale = Math.max(0.8, Math.min(1.1, size.width / stage.clientWidth));
  view.x = root.x - stage.clientWidth * view.scale / 2;
  if (size.width <= stage.clientWidth * view.scale) view.x = (size.width - stage.clientWidth * view.scale) / 2;
  view.y = 0;
  show();
}

function zoom(factor, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
  const scale = Math.min(20, Math.max(0.2, view.scale * factor));
  view.x += x * (view.scale - scale);
  view.y += y * (view.scale - scale);
  view.scale = scale;
  show();
}

function shapesOf(id) { return tree.querySelectorAll(`[data-node="${id}"]`); }

function placeOf(id) {
  const box = shapesOf(id)[0].getBBox();
  return { x: box.x + box.width / 2, y: box.y + box.height / 2 };
}

function pathTo(id) {
  const path = [];
  for (; id > 0; id = nodes[id].parent) path.push(id);
  return path.reverse();
}

function number(value) { return value.toFixed(3); }

function factsOf(id) {
  const node = nodes[id];
  const chance = 100 * Math.exp(node.logprob);
  return [
    ["token", `${JSON.stringify(texts[id])} (${node.token_id})`],
    ["step", String(node.step)],
    ["log probability", `${number(node.logprob)} (${chance < 0.1 ? "< 0.1" : chance.toFixed(1)} %)`],
    ["sum", number(node.cum_logprob)],
    ["score", number(node.score)],
    ["state", node.reason ? `${node.state}: ${node.reason}` : node.state],
  ];
}

function choose(id, moves = false) {
  tree.querySelectorAll(".chosen").forEach((shape) => shape.classList.remove("chosen"));
  chosen = id;
  const path = pathTo(id);
  for (const step of path) shapesOf(step)[0].classList.add("chosen");
  const before = document.createElement("span");
  before.className = "prompt";
  before.textContent = prompt;
  document.getElementById("path").replaceChildren(before, ...path.map((step) => {
    const span = document.createElement("span");
    span.className = `token b-${tints[step]}`;
    span.textContent = texts[step];
    return span;
  }));
  document.getElementById("what").textContent = id ? `${path.length} tokens from the root` : "Prompt";
  const facts = id ? factsOf(id) : [];
  document.getElementById("facts").replaceChildren(...facts.flatMap(([name, value]) => {
    const term = document.createElement("dt");
    const words = document.createElement("dd");
    term.textContent = name;
    words.textContent = value;
    return [term, words];
  }));
  if (!moves) return;
  const place = placeOf(id);
  const seen = { width: stage.clientWidth * view.scale, height: stage.clientHeight * view.scale };
  const isSeen = place.x > view.x + 40 && place.x < view.x + seen.width - 40
    && place.y > view.y + 30 && place.y < view.y + seen.height - 30;
  if (isSeen) return;
  view.x = place.x - seen.width / 2;
  view.y = place.y - seen.height / 2;
  show();
}

function nodeAt(event) {
  const shape = event.target.closest("[data-node]");
  return shape ? Number(shape.dataset.node) : null;
}

// Fingers and the mouse: one drags, two zoom, a click chooses.
const held = new Map();
let travelled = 0;

tree.addEventListener("pointerdown", (event) => {
  held.set(event.pointerId, { x: event.offsetX, y: event.offsetY });
  travelled = 0;
});

addEventListener("pointermove", (event) => {
  const before = held.get(event.pointerId);
  if (!before) return;
  const bounds = stage.getBoundingClientRect();
  const now = { x: event.clientX - bounds.left, y: event.clientY - bounds.top };
  if (held.size === 2) {
    const [other] = [...held].filter(([id]) => id !== event.pointerId).map(([, place]) => place);
    const apart = (place) => Math.hypot(place.x - other.x, place.y - other.y) || 1;
    zoom(apart(before) / apart(now), (now.x + other.x) / 2, (now.y + other.y) / 2);
  } else {
    view.x -= (now.x - before.x) * view.scale;
    view.y -= (now.y - before.y) * view.scale;
    show();
  }
  travelled += Math.abs(now.x - before.x) + Math.abs(now.y - before.y);
  tree.classList.add("dragged");
  held.set(event.pointerId, now);
});

for (const name of ["pointerup", "pointercancel"]) {
  addEventListener(name, (event) => {
    held.delete(event.pointerId);
    tree.classList.remove("dragged");
  });
}

tree.addEventListener("click", (event) => {
  const id = nodeAt(event);
  if (id !== null && travelled < 6) choose(id);
});

tree.addEventListener("wheel", (event) => {
  event.preventDefault();
  const bounds = stage.getBoundingClientRect();
  if (event.ctrlKey || event.metaKey) {
    zoom(Math.exp(event.deltaY / 200), event.clientX - bounds.left, event.clientY - bounds.top);
  } else {
    view.x += event.deltaX * view.scale;
    view.y += event.deltaY * view.scale;
    show();
  }
}, { passive: false });

tree.addEventListener("pointerover", (event) => {
  const id = nodeAt(event);
  tip.hidden = !id || held.size > 0;
  if (!id) return;
  tip.textContent = factsOf(id).map(([name, value]) => `${name}: ${value}`).join("\n");
});

tree.addEventListener("pointermove", (event) => {
  const { offsetWidth, offsetHeight } = tip;
  tip.style.left = `${Math.min(event.clientX + 14, innerWidth - offsetWidth - 8)}px`;
  const below = event.clientY + 18;
  tip.style.top = `${below + offsetHeight > innerHeight ? event.clientY - offsetHeight - 10 : below}px`;
});

tree.addEventListener("pointerleave", () => { tip.hidden = true; });

// The keys: up to the parent, down to the likeliest child, left and right among what its parent could become.
function walk(key) {
  if (key === "ArrowUp") return chosen ? nodes[chosen].parent : 0;
  if (key === "ArrowDown") return children[chosen][0] ?? chosen;
  const around = chosen ? children[nodes[chosen].parent] : [0];
  const place = around.indexOf(chosen) + (key === "ArrowRight" ? 1 : -1);
  return around[Math.min(around.length - 1, Math.max(0, place))];
}

tree.addEventListener("keydown", (event) => {
  if (event.key.startsWith("Arrow")) choose(walk(event.key), true);
  else if (event.key === "+" || event.key === "=") zoom(0.8);
  else if (event.key === "-") zoom(1.25);
  else if (event.key === "0") showWhole();
  else if (event.key === "Escape") choose(0);
  else return;
  event.preventDefault();
});

for (const row of document.querySelectorAll("tr[data-leaf]")) {
  row.addEventListener("click", () => choose(Number(row.dataset.leaf), true));
  row.addEventListener("keydown", (event) => { if (event.key === "Enter") row.click(); });
}

document.getElementById("closer").addEventListener("click", () => zoom(0.8));
document.getElementById("further").addEventListener("click", () => zoom(1.25));
document.getElementById("whole").addEventListener("click", showWhole);
addEventListener("resize", show);
showBeginning();
document.body.dataset.ready = "";
