// Memory: now, by step, since the page was opened, and each category beside what was planned.

import { failed } from "./api.js";
import { gpuOf, gpus, memoryBar } from "./bar.js";
import { Chart, nothing, swatch } from "./charts.js";
import { by, element, fill } from "./dom.js";
import { bytes, category } from "./figures.js";
import { draw } from "./frame.js";
import { newest, readings } from "./history.js";
import { shown, view, wantMemory, zoomTo } from "./shown.js";
import { on } from "./stream.js";

// From the ground of the stack up.
const ORDER = ["weights", "master_weights", "optimizer_state", "gradients", "activations", "kv_cache", "data", "workspace",
  "checkpoint", "rest", "others"];
const WORDS = { rest: "rest of this process", others: "other processes" };

const charts = {};

const plan = () => shown.run?.plan;

// Columns of sums, the highest first, so that each area covers what is below it; a line for the plan.
function stacked(x, columns) {
  const names = ORDER.filter((name) => columns[name]?.some((value) => value > 0));
  const sums = new Array(x.length).fill(0);
  const areas = names.map((name) => {
    columns[name].forEach((value, at) => { sums[at] += value ?? 0; });
    return { name, sums: [...sums], raw: columns[name] };
  }).reverse();
  const lines = areas.map(({ name }) => ({ label: WORDS[name] ?? category(name), colour: name, fill: name, width: 0 }));
  const data = [x, ...areas.map((area) => area.sums)];
  const raw = [x, ...areas.map((area) => area.raw)];
  if (plan()?.peak) {
    const line = new Array(x.length).fill(plan().peak);
    lines.push({ label: "planned peak", colour: "bad", width: 1.5, dash: [6, 4] });
    data.push(line);
    raw.push(line);
  }
  return [lines, data, raw];
}

function showSteps() {
  const course = view();
  nothing(by("chart-memory"), course?.length ? "" : "No step yet.");
  if (!course) return;
  const [lines, data, raw] = stacked(course.step, course.memory);
  charts.steps.show(lines, data, { raw, range: shown.zoom ? [shown.zoom.from, shown.zoom.to] : null });
}

function showReadings() {
  const columns = Object.fromEntries(ORDER.map((name) => [name, readings.map((reading) =>
    reading.parts.find((part) => part.name === name)?.bytes ?? 0)]));
  const [lines, data, raw] = stacked(readings.map((reading) => reading.at), columns);
  charts.now.show(lines, data, { raw });
}

function planned(name) {
  const lines = (plan()?.lines ?? []).filter((line) => line.category === name && line.bytes > 0);
  return lines.map((line) => `${bytes(line.bytes)}${line.phase === "always" ? "" : ` (${line.phase})`}`).join(", ");
}

function showTable() {
  const rows = newest.ledger.categories.map((line) => element("tr", {},
    element("td", {}, swatch(line.category), category(line.category)),
    element("td", { class: "number" }, bytes(line.bytes)), element("td", { class: "number" }, bytes(line.peak)),
    element("td", { class: "number" }, planned(line.category) || "–")));
  const total = element("tr", {}, element("td", {}, "all together"), element("td", { class: "number" }, bytes(newest.ledger.total)),
    element("td", { class: "number" }, bytes(newest.ledger.peak_total)), element("td", { class: "number" }, plan() ? bytes(plan().peak) : "–"));
  fill(by("memory-table"), rows, total);
  const { pool } = newest;
  const lines = [["pool in use", pool?.used], ["pool at most", pool?.used_high], ["pool taken", pool?.reserved],
    ["heap", newest.heap], ["heap at most", newest.heap_peak], ["resident", newest.host.rss],
    ["resident at most", newest.host.peak_rss], ["memory.limit", newest.limit]];
  fill(by("memory-process"), lines.filter(([name, value]) => value != null || !/^(memory|pool)/.test(name)).map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, bytes(value)))));
}

function showNow() {
  if (!newest) return;
  const gpu = gpuOf(newest);
  by("memory-where").textContent = gpu ? `GPU ${gpu.index ?? ""} now` : "This machine now";
  fill(by("memory-bar"), memoryBar(newest, plan()));
  fill(by("memory-gpus"), gpus(newest));
  showTable();
  showReadings();
}

export function begin(section) {
  const heads = ["", "now", "most", "at the planned peak"].map((word, at) => element("th", { scope: "col", class: at ? "number" : "" }, word || "category"));
  fill(section,
    element("div", { class: "pair" },
      element("div", { class: "card" }, element("h2", { id: "memory-where" }, "This machine now"), element("div", { id: "memory-bar" }),
        element("div", { id: "memory-gpus" })),
      element("div", { class: "card" }, element("h2", {}, "What it is for"),
        element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Memory by category" },
          element("table", {}, element("thead", {}, element("tr", {}, heads)), element("tbody", { id: "memory-table" }))),
        element("dl", { class: "tiles", id: "memory-process" }))),
    element("div", { class: "card" }, element("h2", {}, "By step, at most"), element("div", { id: "chart-memory", class: "chart tall" })),
    element("div", { class: "card" }, element("h2", {}, "Since this page was opened, with other processes"),
      element("div", { id: "chart-readings", class: "chart tall" })));
  charts.steps = new Chart(by("chart-memory"), { name: "Memory by step", words: bytes, ground: true,
    zoom: (from, to) => zoomTo(from, to).catch(failed) });
  charts.now = new Chart(by("chart-readings"), { name: "Memory now", words: bytes, sync: null, time: true, ground: true });
  const stepsSoon = () => draw(by("chart-memory"), showSteps);
  const nowSoon = () => draw(by("memory-bar"), showNow);
  for (const kind of ["shown", "course"]) on(kind, stepsSoon);
  on("shown", nowSoon);
  on("memory", nowSoon);
  stepsSoon();
  nowSoon();
  wantMemory().catch(failed);
}
