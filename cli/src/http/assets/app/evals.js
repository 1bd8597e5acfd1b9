// Evaluations: every measure over the steps, and the answers of two of them side by side.

import { beginAnswers } from "./answers.js";
import { Chart } from "./charts.js";
import { by, element, fill } from "./dom.js";
import { whole, wordsOf } from "./figures.js";
import { draw } from "./frame.js";
import { shown } from "./shown.js";
import { on } from "./stream.js";

const OWN = [["loss", "Held-out loss"], ["perplexity", "Perplexity"], ["token_accuracy", "Token accuracy"],
  ["exact_match", "Exact match"]];

// What is made of the loss of rows counts tokens.
const OF_TOKENS = new Set(["loss", "perplexity", "token_accuracy", "generalisation_gap"]);

// The job's own set, whose scores have the intervals of these figures.
const OWN_SETS = new Set(["held-out", "prompts", "training"]);

const charts = new Map();

const isKnown = (value) => value != null;

// One entry for each measure that has a value: steps, values, their interval, and what it began with.
function measures(evals) {
  const found = new Map();
  const at = (key, title, metric) => {
    if (!found.has(key)) found.set(key, { title, words: wordsOf(metric), step: [], value: [], low: [], high: [], best: [], base: null, ofBase: false, of: "", count: null });
    return found.get(key);
  };
  for (const row of evals) {
    const ofOwn = (metric) => row.scores?.find((score) => OWN_SETS.has(score.set) && score.metric === metric);
    for (const [key, title] of OWN) {
      if (isKnown(row[key])) push(at(key, title, key), row.step, { value: row[key], ...ofOwn(key) });
    }
    const isShown = (score) => OWN_SETS.has(score.set) && OWN.some(([key]) => key === score.metric && isKnown(row[key]));
    for (const score of (row.scores ?? []).filter((score) => !isShown(score))) {
      if (isKnown(score.value)) push(at(`${score.set}/${score.metric}`, `${score.set}: ${score.metric.replaceAll("_", " ")}`, score.metric), row.step, score);
    }
  }
  return found;
}

function push(one, step, { value, low, high, best, base, count, of_base, metric }) {
  one.step.push(step);
  one.value.push(value);
  one.low.push(low ?? null);
  one.high.push(high ?? null);
  one.best.push(best ?? null);
  one.base ??= base ?? null;
  one.ofBase ||= of_base ?? false;
  one.of = OF_TOKENS.has(metric) ? "tokens" : "questions";
  one.count = count ?? one.count;
}

function showOne(key, one) {
  if (!charts.has(key)) {
    const host = element("div", { class: "chart" });
    const note = element("span", { class: "muted" });
    by("eval-charts").append(element("div", { class: "card" }, element("div", { class: "line" }, element("h2", {}, one.title), note), host));
    charts.set(key, { note, chart: new Chart(host, { name: one.title, words: one.words, sync: "evals" }) });
  }
  const { chart, note } = charts.get(key);
  fill(note, one.count == null ? "" : `${whole(one.count)} ${one.of}`);
  const lines = [{ label: "value", colour: "accent", width: 2, points: true }];
  const data = [one.step, one.value];
  const bands = [];
  if (one.low.some(isKnown)) {
    lines.unshift({ label: "low", colour: "raw", width: 0 }, { label: "high", colour: "raw", width: 0 });
    data.splice(1, 0, one.low, one.high);
    bands.push([2, 1]);
  }
  // In this run and in those before it; of one evaluation it is the value itself.
  if (one.best.some((best, at) => isKnown(best) && best !== one.value[at])) {
    lines.push({ label: "best so far", colour: "good", dash: [2, 3], width: 1 });
    data.push(one.best);
  }
  if (isKnown(one.base)) {
    lines.push({ label: one.ofBase ? "base model" : "the first time", colour: "cool", dash: [4, 4], width: 1 });
    data.push(one.step.map(() => one.base));
  }
  chart.show(lines, data, { bands });
}

function show() {
  const found = measures(shown.evals);
  for (const key of charts.keys()) if (!found.has(key)) clear();
  for (const [key, one] of found) showOne(key, one);
  by("no-evals").hidden = found.size > 0;
}

function clear() {
  for (const { chart } of charts.values()) chart.end();
  charts.clear();
  by("eval-charts").replaceChildren();
}

export function begin(section) {
  fill(section,
    element("p", { id: "no-evals", class: "card muted" }, "This run has not been evaluated yet."),
    element("div", { id: "eval-charts", class: "pair" }),
    element("div", { class: "card", id: "answers" }));
  beginAnswers(by("answers"));
  const soon = () => draw(by("eval-charts"), show);
  on("shown", soon);
  on("evals", soon);
  soon();
}
