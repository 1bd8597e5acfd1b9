// What each layer measured, as a heat map: layers down, steps across, colour by the logarithm. The
// canvas has a pixel for each value; the browser makes it large.

import { ask, failed } from "./api.js";
import { nothing, swatch } from "./charts.js";
import { by, colour, element, fill } from "./dom.js";
import { figure } from "./figures.js";
import { draw } from "./frame.js";
import { keep, kept } from "./kept.js";
import { shown } from "./shown.js";
import { on } from "./stream.js";

// Steps that are asked for; every other one is left out when there are twice as many.
const POINTS = 160;
// Pixels of a row where there are few, of all rows, and of a name.
const [ROW, ALL, NAME] = [18, 324, 14];
const WORDS = { grad_norm: "gradient norm", update_ratio: "update by weights" };

let map = null;
// The stretch that was read, and steps that came meanwhile.
let stretch = null;
let early = null;
let turn = 0;
// The layer and the place of the step that are told of.
let at = null;

const quantity = () => by("layers-of").value;
// The card itself may be hidden.
const soon = () => draw(by("layers").parentElement, show);

async function read() {
  const { id, zoom } = shown;
  const mine = ++turn;
  stretch = zoom;
  early = [];
  try {
    const asked = new URLSearchParams({ points: POINTS, digits: 4, ...(zoom && { from: zoom.from, to: zoom.to }) });
    const answer = await ask(`runs/${id}/layers?${asked}`);
    if (mine !== turn) return;
    [map, at] = [answer, null];
    for (const row of early) add(row);
  } finally {
    if (mine === turn) early = null;
  }
  soon();
}

function add({ step, layers }) {
  if (step <= (map.step.at(-1) ?? 0) || step > (stretch?.to ?? Infinity)) return;
  if (!map.step.length) Object.assign(map, { layers: layers.map((one) => one.layer), grad_norm: layers.map(() => []), update_ratio: layers.map(() => []) });
  map.step.push(step);
  layers.forEach((one, place) => {
    map.grad_norm[place].push(one.grad_norm);
    map.update_ratio[place].push(one.weight_norm > 0 && one.update_norm != null ? one.update_norm / one.weight_norm : null);
  });
  if (map.step.length <= 2 * POINTS) return;
  const thin = (column) => column.filter((_, place) => place % 2 === (column.length - 1) % 2);
  for (const name of Object.keys(WORDS)) map[name] = map[name].map(thin);
  map.step = thin(map.step);
  at = null;
}

// From a value to its part of the way between the smallest and the largest.
function scale(rows) {
  const known = rows.flat().filter((value) => value > 0);
  const [low, high] = [Math.min, Math.max].map((end) => known.reduce((all, value) => end(all, value)));
  const span = Math.log10(high) - Math.log10(low) || 1;
  return { low, high, part: (value) => Math.max(0, (Math.log10(value) - Math.log10(low)) / span) };
}

function paint(rows, part) {
  const stops = ["heat-low", "heat-middle", "heat-high"].map((name) => colour(name).match(/\d+/g).map(Number));
  const canvas = by("layers-plot").firstChild;
  [canvas.width, canvas.height] = [map.step.length, rows.length];
  const image = new ImageData(canvas.width, canvas.height);
  rows.flat().forEach((value, place) => {
    if (value == null) return;
    const way = 2 * part(value);
    const from = Math.min(Math.floor(way), 1);
    image.data.set([...stops[from].map((one, channel) => one + (stops[from + 1][channel] - one) * (way - from)), 255], 4 * place);
  });
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function writeNames() {
  const { layers } = map;
  const height = Math.min(layers.length * ROW, ALL);
  const every = Math.ceil(NAME * layers.length / height);
  fill(by("layers-names"), layers.map((name, place) => element("span", {}, place % every ? "" : name)));
  for (const id of ["layers-names", "layers-plot"]) by(id).style.height = `${height}px`;
  fill(by("layers-steps"), map.step.length > 1 ? [element("span", {}, `step ${map.step[0]}`), element("span", {}, map.step.at(-1))] : `step ${map.step[0]}`);
}

function show() {
  by("layers").hidden = !map?.step.length;
  if (by("layers").hidden) return;
  const rows = map[quantity()];
  const isKnown = rows.flat().some((value) => value > 0);
  nothing(by("layers-plot"), isKnown ? "" : "unknown");
  by("layers-plot").firstChild.hidden = !isKnown;
  writeNames();
  if (!isKnown) return fill(by("layers-told"));
  const { low, high, part } = scale(rows);
  paint(rows, part);
  tell(low, high);
}

// The value at the cursor, or what the colours mean.
function tell(low, high) {
  const mark = by("layers-plot").children[1];
  const [columns, rows] = [map.step.length, map.layers.length];
  mark.hidden = !at;
  // Read aloud to whoever moves the cursor, not with each step.
  by("layers-told").setAttribute("aria-live", document.activeElement === by("layers-plot") ? "polite" : "off");
  if (at) {
    const [layer, place] = at;
    const parts = { left: place / columns, top: layer / rows, width: 1 / columns, height: 1 / rows };
    for (const [side, part] of Object.entries(parts)) mark.style[side] = `${100 * part}%`;
    fill(by("layers-told"), `step ${map.step[place]}, ${map.layers[layer]}: `, element("b", {}, figure(map[quantity()][layer][place])));
    return;
  }
  fill(by("layers-told"), swatch("heat-low"), figure(low), " to ", swatch("heat-high"), figure(high));
  by("layers-plot").setAttribute("aria-label", `Layers, ${WORDS[quantity()]}: from ${figure(low)} to ${figure(high)} in steps ${map.step[0]} to ${map.step.at(-1)}. Arrows go from value to value.`);
}

function look(next) {
  const within = (value, count) => Math.max(0, Math.min(count - 1, value));
  at = next && [within(next[0], map.layers.length), within(next[1], map.step.length)];
  soon();
}

function key(event) {
  const move = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (!move || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  // The first one goes to the newest step.
  look(at ? [at[0] + move[0], at[1] + move[1]] : [0, map.step.length - 1]);
}

export function beginLayers() {
  const plot = by("layers-plot");
  fill(plot, element("canvas"), element("i", { hidden: true }));
  plot.addEventListener("keydown", key);
  plot.addEventListener("blur", () => look(null));
  plot.addEventListener("pointerleave", () => look(null));
  plot.addEventListener("pointermove", ({ clientX, clientY }) => {
    const { left, top, width, height } = plot.getBoundingClientRect();
    look([Math.floor((clientY - top) / height * map.layers.length), Math.floor((clientX - left) / width * map.step.length)]);
  });
  by("layers-of").value = kept("layers-of") ?? "grad_norm";
  by("layers-of").addEventListener("change", () => { keep("layers-of", quantity()); look(null); });
  on("theme", soon);
  on("shown", () => {
    if (shown.whole) return read().catch(failed);
    // Another run is being read.
    turn += 1;
    [map, early, stretch] = [null, null, null];
    soon();
  });
  on("course", () => { if (shown.zoom !== stretch) read().catch(failed); });
  on("step", (row) => {
    if (row.run_id !== shown.id || !row.layers) return;
    early?.push(row);
    if (!map) return;
    add(row);
    soon();
  });
}
