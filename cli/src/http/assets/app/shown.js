// The run that is shown: its curve, its evaluations, and the stretch that is looked at.

import { ask, failed } from "./api.js";
import { Course, POINTS } from "./course.js";
import { by, choices } from "./dom.js";
import { on, tell } from "./stream.js";

export const shown = {
  id: null,
  // The newest run is shown, whichever that is.
  follows: true,
  runs: [],
  run: null,
  whole: null,
  evals: [],
  // The stretch that is looked at, with its own finer curve; `null` where all is.
  zoom: null,
  // Another run, to compare with.
  beside: null,
};

// What the charts show.
export const view = () => shown.zoom?.course ?? shown.whole;

// Memory by step is half of a curve, and read once somebody wants it.
let withMemory = false;

const course = async (id, stretch = {}) => {
  const asked = new URLSearchParams({ points: POINTS, digits: 4, memory: withMemory, ...stretch });
  return new Course(await ask(`runs/${id}/metrics?${asked}`));
};

// Steps that came while the curve was being read, which may or may not have them.
let early = null;
let turn = 0;
let zooming = 0;

export async function showRun(id, follows) {
  const mine = ++turn;
  early = [];
  const isOther = id !== shown.id;
  Object.assign(shown, { id, follows });
  if (isOther) {
    // A stretch that is being read is one of the run before.
    zooming += 1;
    Object.assign(shown, { zoom: null, whole: null, evals: [], run: null });
    tell("shown", shown);
  }
  by("run").value = String(id ?? "");
  if (id === null) return;
  try {
    const [whole, evals, { run, config }] =
      await Promise.all([course(id), ask(`runs/${id}/evals`), ask(`runs/${id}`)]);
    if (mine !== turn) return;
    for (const row of early) whole.add(row);
    Object.assign(shown, { whole, evals, run: { ...run, config } });
  } finally {
    if (mine === turn) early = null;
  }
  tell("shown", shown);
}

export async function readRuns() {
  shown.runs = await ask("runs?limit=30");
  const newest = shown.runs[0]?.id ?? null;
  const pairs = shown.runs.map((run) => [run.id, `${run.id} · ${run.file_name ?? "no file"} · ${run.state}`]);
  choices(by("run"), pairs.length ? pairs : [["", "none yet"]], shown.id);
  tell("runs", shown.runs);
  await showRun(shown.follows ? newest : shown.id, shown.follows);
}

// Shows the run before or after this one.
export function otherRun(direction) {
  const at = shown.runs.findIndex((run) => run.id === shown.id) - direction;
  const run = shown.runs[at];
  if (run) showRun(run.id, at === 0).catch(failed);
}

// Looks at these steps, as finely as the points allow; without them at the whole run.
export async function zoomTo(from, to) {
  const mine = ++zooming;
  const last = shown.whole?.last ?? 0;
  if (from == null || (from <= 1 && to >= last)) {
    shown.zoom = null;
  } else {
    const stretch = { from: Math.max(1, Math.floor(from)), to: Math.ceil(Math.max(to, from + 1)) };
    const [near, beside] = await Promise.all([
      course(shown.id, stretch), shown.beside && course(shown.beside.id, stretch)]);
    if (mine !== zooming) return;
    shown.zoom = { ...stretch, course: near, beside };
  }
  tell("course", shown);
}

let comparing = 0;

export async function compareWith(id) {
  const mine = ++comparing;
  const beside = id === null ? null : { id, course: await course(id) };
  if (mine !== comparing) return;
  shown.beside = beside;
  if (shown.zoom) await zoomTo(shown.zoom.from, shown.zoom.to);
  tell("course", shown);
}

// Reads the curve again with what each category held.
export async function wantMemory() {
  if (withMemory) return;
  withMemory = true;
  if (shown.id !== null) await showRun(shown.id, shown.follows);
  if (shown.zoom) await zoomTo(shown.zoom.from, shown.zoom.to);
}

function addStep(row) {
  if (row.run_id !== shown.id) return;
  shown.whole?.add(row);
  early?.push(row);
  tell("course", shown);
}

async function readEvals(row) {
  if (row.run_id !== shown.id) return;
  const evals = await ask(`runs/${row.run_id}/evals`);
  if (row.run_id !== shown.id) return;
  shown.evals = evals;
  tell("evals", shown);
}

export function beginShown() {
  by("run").addEventListener("change", () => {
    const id = Number(by("run").value);
    showRun(id, id === shown.runs[0]?.id).catch(failed);
  });
  const again = () => readRuns().catch(failed);
  on("hello", again);
  on("run", again);
  on("step", addStep);
  on("eval", (row) => readEvals(row).catch(failed));
  on("gap", (gap) => { if (gap.run_id === shown.id) showRun(shown.id, shown.follows).catch(failed); });
}
