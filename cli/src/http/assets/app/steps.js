// The curves of a run: loss with its smoothing, gradient norm, learning rate, speed, accuracy.

import { failed } from "./api.js";
import { Chart, nothing } from "./charts.js";
import { smoothed } from "./course.js";
import { by, choices } from "./dom.js";
import { figure, percent, whole } from "./figures.js";
import { draw } from "./frame.js";
import { keep, kept } from "./kept.js";
import { compareWith, shown, view, zoomTo } from "./shown.js";
import { on } from "./stream.js";

const settings = { weight: 0.6, log: false };

const SMALL = {
  grad_norm: ["Gradient norm", figure],
  lr: ["Learning rate", figure],
  tokens_per_s: ["Tokens a second", whole],
  mean_token_accuracy: ["Token accuracy", percent],
};

const LINES = {
  band: [{ colour: "raw", width: 0 }, { colour: "raw", width: 0 }],
  raw: { label: "raw", colour: "raw", width: 1 },
  smooth: { label: "smoothed", colour: "accent", width: 2 },
  beside: (id) => ({ label: `run ${id}`, colour: "cool", width: 1.5, dash: [5, 4] }),
  heldOut: { label: "held out", colour: "good", width: 1.5, points: true },
};

const charts = {};
const zoom = (from, to) => zoomTo(from, to).catch(failed);
const range = () => (shown.zoom ? [shown.zoom.from, shown.zoom.to] : null);
// A logarithm has none of zero; the line has a gap there.
const drawable = (values) => (settings.log ? values.map((value) => (value > 0 ? value : null)) : values);

function showLoss() {
  const { step, series: { loss } } = view();
  const evals = shown.evals.filter((row) => row.loss != null &&
    (!shown.zoom || (row.step >= shown.zoom.from && row.step <= shown.zoom.to)));
  const beside = shown.beside && (shown.zoom?.beside ?? shown.beside.course);
  const lines = [...LINES.band, LINES.raw, LINES.smooth];
  const tables = [[step, loss.min, loss.max, loss.mean, smoothed(loss.mean, settings.weight)].map((column, at) =>
    (at ? drawable(column) : column))];
  if (beside?.length) {
    lines.push(LINES.beside(shown.beside.id));
    tables.push([beside.step, drawable(smoothed(beside.series.loss.mean, settings.weight))]);
  }
  if (evals.length) {
    lines.push(LINES.heldOut);
    tables.push([evals.map((row) => row.step), drawable(evals.map((row) => row.loss))]);
  }
  const data = tables.length > 1 ? uPlot.join(tables) : tables[0];
  charts.loss.show(lines, data, { range: range(), log: settings.log, bands: [[2, 1]] });
}

function showSmall(name) {
  const { step, series } = view();
  const { min, mean, max } = series[name];
  const isKnown = mean.some((value) => value != null);
  nothing(by(`chart-${name}`), isKnown || !step.length ? "" : "unknown");
  if (name === "lr") {
    charts.lr.show([{ label: "rate", colour: "accent", width: 2 }], [step, mean], { range: range() });
    return;
  }
  const data = [step, min, max, mean, smoothed(mean, settings.weight)];
  charts[name].show([...LINES.band, LINES.raw, LINES.smooth], data, { range: range(), bands: [[2, 1]] });
}

function show() {
  by("zoom-out").hidden = !shown.zoom;
  nothing(by("chart-loss"), shown.whole?.length ? "" : shown.id === null ? "No run yet. A file in the inbox begins one." : "No step yet.");
  if (!view()) return;
  showLoss();
  for (const name of Object.keys(SMALL)) showSmall(name);
}

function smooth(weight) {
  settings.weight = weight;
  by("smoothing").value = weight;
  by("smoothing-value").textContent = weight.toFixed(2);
}

export function toggleLog() {
  settings.log = by("log-scale").checked = !settings.log;
  if (view()) showLoss();
}

export function beginSteps() {
  charts.loss = new Chart(by("chart-loss"), { name: "Loss", words: figure, zoom });
  for (const [name, [title, words]] of Object.entries(SMALL)) {
    charts[name] = new Chart(by(`chart-${name}`), { name: title, words, zoom });
  }
  smooth(Number(kept("smoothing") ?? settings.weight));
  by("smoothing").addEventListener("input", () => {
    smooth(Number(by("smoothing").value));
    keep("smoothing", settings.weight);
    show();
  });
  by("log-scale").addEventListener("change", toggleLog);
  by("zoom-out").addEventListener("click", () => zoom());
  by("beside").addEventListener("change", () => {
    const id = by("beside").value;
    compareWith(id === "" ? null : Number(id)).catch(failed);
  });
  on("runs", (runs) => {
    const others = runs.map((run) => [run.id, `run ${run.id} · ${run.file_name ?? "no file"}`]);
    choices(by("beside"), [["", "nothing"], ...others], shown.beside?.id ?? "");
  });
  for (const kind of ["shown", "course", "evals"]) on(kind, () => draw(by("view-run"), show));
}
