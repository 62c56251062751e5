"use strict";
// Text from files only ever becomes text nodes and attribute values, never markup.

const block = document.getElementById("data");
const report = JSON.parse(block.textContent);
block.remove(); // the parsed copy suffices
const { images, experiments, attributes } = report;
for (const { runs } of images) runs.forEach((run, index) => { if (run) run.experiment = experiments[index]; });
const several = experiments.length > 1;
const gallery = document.getElementById("gallery");
const bar = document.getElementById("bar");
const detail = document.getElementById("detail");
gallery.classList.toggle("several", several);

/** An element with attributes and children; strings become text. */
function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

const idText = (id) => String(id).padStart(7, "0");
const source = (base64) => `data:image/webp;base64,${base64}`;

/** A share between 0 and 1; one that is not quite 0 or 1 does not look as if it were. */
function number(value, digits = 3) {
  const least = 10 ** -digits;
  if (value > 0 && value < least / 2) return `<${least.toFixed(digits)}`;
  if (value < 1 && value > 1 - least / 2) return `>${(1 - least).toFixed(digits)}`;
  return value.toFixed(digits);
}

const picture = (base64, alt, caption) =>
  el("figure", {}, el("img", { src: source(base64), alt, draggable: "false" }), caption ? el("figcaption", {}, caption) : null);

// ---------------------------------------------------------------- figures about one result

/** A decision in words: a class, or whether the attribute is there; its number where the run does not tell. */
function named({ classes, attribute }, decision) {
  if (classes) return classes[decision] ?? String(decision);
  return attribute ? `${decision ? "" : "not "}${attribute}` : String(decision);
}
const changed = ({ changes, experiment }) => (changes || []).filter(([index]) => attributes[index] !== experiment.attribute);
const moved = ({ info }) => ("orig_conf" in info && "cf_conf" in info ? Math.abs(info.cf_conf - info.orig_conf) : undefined);

function badges(run) {
  return el("span", { class: "badges" },
    el("span", { class: "badge", title: run.correct ? "input classified correctly" : "input classified incorrectly" }, run.correct ? "CC" : "IC"),
    el("span", { class: `badge ${run.flipped ? "hit" : "miss"}`, title: run.flipped ? "target reached" : "target missed" },
      run.flipped ? "CCF ✓" : "ICF ✗"));
}

/** The probability before and after, as numbers and as a line from one to the other. */
function probability({ info, experiment }) {
  if (!("orig_conf" in info && "cf_conf" in info)) return null;
  const [before, after] = [info.orig_conf, info.cf_conf];
  const span = el("span", { class: "span" });
  span.style.left = `${100 * Math.min(before, after)}%`;
  span.style.width = `${100 * Math.abs(after - before)}%`;
  const from = el("span", { class: "dot from" });
  const to = el("span", { class: "dot to" });
  from.style.left = `${100 * before}%`;
  to.style.left = `${100 * after}%`;
  const name = `p(${experiment.classes ? ("target" in info ? named(experiment, info.target) : "target") : experiment.attribute || "attribute"})`;
  return el("div", { class: "probability", title: "ring: before, filled: after" },
    el("div", { class: "row" }, el("span", { class: "faint" }, name), el("span", { class: "figures" }, `${number(before)} → ${number(after)}`)),
    el("div", { class: "track", "aria-hidden": "true" }, span, from, to));
}

function shortFigures({ info }) {
  const parts = [];
  if ("l_1" in info) parts.push(`L1 ${number(info.l_1)}`);
  if ("bkl" in info) parts.push(`BKL ${number(info.bkl)}`);
  if ("scale" in info) parts.push(`scale ${info.scale}`);
  return el("div", { class: "faint figures" }, parts.join(" · "));
}

function chips(run) {
  if (!run.changes) return null;
  const others = changed(run).map(([attribute, sign]) => el("span", { class: "chip" }, `${sign > 0 ? "+" : "−"} ${attributes[attribute]}`));
  return el("div", { class: "chips" }, ...(others.length ? others : [el("span", { class: "faint" }, "no other attribute changes")]));
}

// ---------------------------------------------------------------- the gallery

function card(image) {
  // the button's area covers the card, whose text and pictures stay outside it for those who listen to the page
  const open = el("button", { type: "button", class: "id", "aria-label": `Image ${image.id}: details`, onclick: () => show(image.id) }, idText(image.id));
  const input = picture(image.input, `input ${image.id}`, "input");
  if (!several) {
    const [run] = image.runs;
    return el("article", { class: "inner" }, el("div", { class: "row" }, open, badges(run)),
      el("div", { class: "triple" }, input, ...outcome(image, run)),
      probability(run), shortFigures(run), chips(run));
  }
  const runs = image.runs.map((run, index) => {
    const name = el("span", { class: "name" }, experiments[index].name);
    if (!run) return el("div", { class: "run absent" }, name, el("span", { class: "faint" }, "not in this experiment"));
    return el("div", { class: "run" }, el("div", { class: "row" }, name, badges(run)),
      el("div", { class: "pair" }, ...outcome(image, run)), probability(run), shortFigures(run), chips(run));
  });
  return el("article", { class: "inner wide" }, el("div", { class: "own" }, open, input), ...runs);
}

const outcome = (image, run) => [
  picture(run.cf, `counterfactual of ${image.id}`, "counterfactual"),
  picture(run.difference, `difference map of ${image.id}`, "difference"),
];

const filler = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    filler.unobserve(target);
    fill(target);
  }
}, { rootMargin: "1200px 0px" });

function fill(item) {
  if (!item.hasChildNodes()) item.append(card(byId.get(Number(item.dataset.id))));
}

const byId = new Map(images.map((image) => [image.id, image]));
let listed = [];

const AT_ONCE = 12;

/** Lay out what the filters let through; but for the first ones, cards are made when they come near the window. */
function refresh() {
  filler.disconnect();
  listed = images.filter(passes);
  listed.sort(order());
  const cards = listed.map((image) => el("li", { class: "card", "data-id": image.id }));
  gallery.replaceChildren(...cards);
  cards.slice(0, AT_ONCE).forEach(fill);
  cards.slice(AT_ONCE).forEach((item) => filler.observe(item));
  document.getElementById("empty").hidden = listed.length > 0;
  document.getElementById("count").textContent = `${listed.length.toLocaleString("en")} of ${images.length.toLocaleString("en")} images`;
  remember();
}

// ---------------------------------------------------------------- filters and sorting

const KEYS = {
  id: { name: "id", of: null },
  l_1: { name: "L1 distance", of: (run) => run.info.l_1 },
  bkl: { name: "BKL", of: (run) => run.info.bkl },
  change: { name: "change of probability", of: moved },
  changes: { name: "other attributes changed", of: (run) => (run.changes ? changed(run).length : undefined) },
};
const DEFAULTS = { exp: "0", correct: "", flipped: "", pred: "", target: "", attribute: "", sort: "id", order: "", find: "" };
const state = { ...DEFAULTS };

const selected = (image) => image.runs[Number(state.exp)];

function passes(image) {
  const run = selected(image);
  if (state.find && !idText(image.id).includes(state.find)) return false;
  const { correct, flipped, pred, target, attribute } = state;
  if (!correct && !flipped && !pred && !target && !attribute) return true;
  if (!run) return false;
  if (correct && run.correct !== (correct === "CC")) return false;
  if (flipped && run.flipped !== (flipped === "CCF")) return false;
  if (pred && run.info.pred !== Number(pred)) return false;
  if (target && run.info.target !== Number(target)) return false;
  if (attribute === "none") return Boolean(run.changes) && changed(run).length === 0;
  return !attribute || (run.changes || []).some(([index]) => index === Number(attribute));
}

/** Compares two images by the chosen figure, then by id; those that lack the figure come last in either direction. */
function order() {
  const { of } = KEYS[state.sort];
  const direction = state.order === "largest" ? -1 : 1;
  const key = (run) => (of ? direction * ((run && of(run)) ?? direction * Infinity) : 0);
  const keys = new Map(listed.map((image) => [image, key(selected(image))]));
  return (a, b) => (keys.get(a) === keys.get(b) ? direction * (a.id - b.id) : keys.get(a) - keys.get(b));
}

function choice(name, label, options) {
  if (options.length < 2) return null;
  const select = el("select", { name, onchange: () => { state[name] = select.value; refresh(); } },
    ...options.map(([value, text]) => el("option", { value }, text)));
  return el("label", {}, el("span", {}, label), select);
}

function buildBar() {
  const [first] = experiments;
  const runs = images.flatMap((image) => image.runs.filter(Boolean));
  const has = (name) => runs.some((run) => name in run.info);
  const counts = new Map();
  for (const run of runs) for (const [index] of run.changes || []) counts.set(index, (counts.get(index) || 0) + 1);
  const oracle = runs.some((run) => run.changes);
  const same = ({ attribute, classes }) => attribute === first.attribute && String(classes) === String(first.classes);
  const common = experiments.every(same) ? first : {};
  const decisions = (key, all) => {
    const met = [...new Set(runs.map(({ info }) => info[key]).filter((value) => value !== undefined))];
    const values = common.classes ? met.sort((a, b) => a - b) : [1, 0];
    return [["", all], ...values.map((value) => [String(value), named(common, value)])];
  };
  const sorts = Object.keys(KEYS).filter((key) =>
    ({ id: true, change: runs.some((run) => moved(run) !== undefined), changes: oracle })[key] ?? has(key));
  const find = el("input", { type: "search", name: "find", inputmode: "numeric", placeholder: "id", size: "8",
    oninput: () => { state.find = find.value.trim(); refresh(); } });
  const attributeOptions = [...counts].sort((a, b) => b[1] - a[1]).map(([index, n]) => [String(index), `${attributes[index]} (${n})`]);
  const parts = [
    several ? choice("exp", "Experiment", experiments.map(({ name }, index) => [String(index), name])) : null,
    choice("correct", "Input", [["", "all"], ["CC", "classified correctly (CC)"], ["IC", "incorrectly (IC)"]]),
    choice("flipped", "Target", [["", "all"], ["CCF", "reached (CCF)"], ["ICF", "missed (ICF)"]]),
    common.classes && has("pred") ? choice("pred", "From", decisions("pred", "all")) : null,
    has("target") ? choice("target", "Towards", decisions("target", common.classes ? "all" : "both")) : null,
    oracle ? choice("attribute", "Attribute changed", [["", "any or none"], ["none", "no other"], ...attributeOptions]) : null,
    choice("sort", "Sort by", sorts.map((key) => [key, KEYS[key].name])),
    choice("order", "Order", [["", "smallest first"], ["largest", "largest first"]]),
    el("label", {}, el("span", {}, "Find"), find),
    el("output", { id: "count", "aria-live": "polite" }),
  ];
  bar.append(...parts.filter(Boolean));
  bar.addEventListener("submit", (event) => event.preventDefault());
  bar.hidden = false;
}

function syncBar() {
  for (const field of bar.querySelectorAll("select, input")) field.value = state[field.name];
}

// ---------------------------------------------------------------- the detail view

let current = null;

function show(id) {
  const image = byId.get(id);
  if (!image) return;
  const focused = detail.open ? document.activeElement.getAttribute("aria-label") : null;
  current = id;
  const place = listed.indexOf(image);
  const title = el("h2", { id: "detail-title" }, `Image ${idText(id)}`);
  const where = el("span", { class: "faint" }, place < 0 ? "" : `${(place + 1).toLocaleString("en")} of ${listed.length.toLocaleString("en")}`);
  const button = (label, text, action, disabled) => el("button", { type: "button", "aria-label": label, title: label, disabled, onclick: action }, text);
  const head = el("div", { class: "detail-head" }, title, where, el("span", { class: "spacer" }),
    button("Previous image (left arrow)", "←", () => step(-1), place <= 0),
    button("Next image (right arrow)", "→", () => step(1), place < 0 || place >= listed.length - 1),
    button("Close (Escape)", "✕", () => detail.close(), false));
  detail.replaceChildren(head, fader(), ...image.runs.map((run, index) => panel(image, run, index)));
  if (!detail.open) detail.showModal();
  const buttons = [...head.querySelectorAll("button:enabled")];
  (buttons.find((candidate) => candidate.getAttribute("aria-label") === focused) || detail).focus();
  detail.scrollTop = 0;
  remember();
}

/** One slider that lays the counterfactual over the input, in every panel. */
function fader() {
  const slider = el("input", { type: "range", min: "0", max: "1", step: "0.01", value: "1", class: "fader", oninput: () =>
    detail.querySelectorAll(".overlay").forEach((image) => { image.style.opacity = slider.value; }) });
  return el("label", { class: "fade" }, el("span", {}, "input"), slider, el("span", {}, "counterfactual"));
}

function panel(image, run, index) {
  const name = several ? el("h3", {}, experiments[index].name, run ? badges(run) : "") : null;
  if (!run) return el("section", { class: "panel" }, name, el("p", { class: "faint" }, "not in this experiment"));
  const below = el("img", { src: source(image.input), alt: "" });
  const above = el("img", { src: source(run.cf), alt: `counterfactual of ${image.id}`, class: "overlay" });
  return el("section", { class: "panel" }, name,
    el("div", { class: "large" },
      picture(image.input, `input ${image.id}`, "input"),
      el("figure", {}, el("div", { class: "stack" }, below, above), el("figcaption", {}, "counterfactual")),
      picture(run.difference, `difference map of ${image.id}`, "difference"),
      el("div", { class: "facts" }, several ? null : badges(run), probability(run), facts(run), chips(run))),
    ...Object.entries(run.strips).map(([kind, strip]) => film(kind, strip)),
    run.saved.length && !Object.keys(run.strips).length
      ? el("p", { class: "faint" }, "The steps of this image are saved, but its film strip is not in this file (--film-strips).") : null);
}

function facts({ info, experiment }) {
  const lines = [
    ["label", "label" in info && named(experiment, info.label)], ["prediction", "pred" in info && named(experiment, info.pred)],
    ["target", "target" in info && named(experiment, info.target)], ["prediction after", "cf_pred" in info && named(experiment, info.cf_pred)],
    ["1 − p(target), BKL", "bkl" in info && number(info.bkl, 4)], ["distance L1", "l_1" in info && number(info.l_1, 4)],
    ["scale used", "scale" in info && String(info.scale)],
  ].filter(([, value]) => value !== false);
  return el("dl", { class: "facts-list" }, ...lines.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

const FILMS = { x_t: "x_t, the clean estimate", z_t: "z_t, the noisy image" };

function film(kind, { image, shown, of }) {
  const name = FILMS[kind] || kind;
  const text = shown < of ? `${name}: ${shown} of ${of} steps, from first to last` : `${name}: all ${of} steps`;
  return el("figure", { class: "film" }, el("figcaption", {}, text),
    el("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": text }, el("img", { src: source(image), alt: text })));
}

function step(by) {
  const next = listed[listed.indexOf(byId.get(current)) + by];
  if (next) show(next.id);
}

detail.addEventListener("close", () => {
  const item = gallery.querySelector(`[data-id="${current}"]`);
  current = null;
  remember();
  if (!item) return;
  fill(item);
  item.scrollIntoView({ block: "nearest" });
  item.querySelector("button").focus({ preventScroll: true });
});
detail.addEventListener("click", (event) => { if (event.target === detail) detail.close(); });
document.addEventListener("keydown", (event) => {
  if (!detail.open || event.altKey || event.ctrlKey || event.metaKey) return;
  const onSlider = event.target instanceof HTMLInputElement;
  if (event.key === "Escape") detail.close();
  else if (event.key === "ArrowRight" && !onSlider) step(1);
  else if (event.key === "ArrowLeft" && !onSlider) step(-1);
  else return;
  event.preventDefault();
});

// ---------------------------------------------------------------- the address keeps filters, sorting and the open image

function remember() {
  const words = new URLSearchParams(Object.entries(state).filter(([name, value]) => value !== DEFAULTS[name]));
  if (current !== null) words.set("id", current);
  history.replaceState(null, "", `#${words}`);
}

function recall() {
  const words = new URLSearchParams(location.hash.slice(1));
  Object.assign(state, DEFAULTS);
  for (const name of Object.keys(DEFAULTS)) if (words.has(name)) state[name] = words.get(name);
  if (!KEYS[state.sort]) state.sort = "id";
  if (!experiments[Number(state.exp)]) state.exp = "0";
  syncBar();
  refresh();
  if (words.has("id")) show(Number(words.get("id")));
}

document.getElementById("reset").addEventListener("click", () => { Object.assign(state, DEFAULTS); syncBar(); refresh(); });
window.addEventListener("hashchange", recall);
buildBar();
recall();
