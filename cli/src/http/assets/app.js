// The page: what is there is read once, and the stream says what changes.
"use strict";

const POINTS = 1000;
const EVENTS = 100;

const by = (id) => document.getElementById(id);
const state = { shown: null, newest: null, follow: true, chart: null, data: [[], [], [], [], []], settled: null,
  event: 0, current: null };

// Elements with text, never with markup: file names and messages are other people's.
function element(tag, content, attributes = {}) {
  const made = document.createElement(tag);
  for (const part of [content].flat()) made.append(part);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function notice(text, bad) {
  by("notice").textContent = text;
  by("notice").className = bad ? "bad" : "";
  by("notice").hidden = !text;
}

async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  const response = await fetch("/api/" + path, options);
  const answer = await response.json();
  if (response.ok) return answer;
  throw new Error(answer.hint ? `${answer.error} (${answer.hint})` : answer.error);
}

async function act(path, body) {
  try {
    notice((await ask(path, body)).message, false);
    await readSettled();
  } catch (error) {
    notice(error.message, true);
  }
}

// Figures

function bytes(count) {
  if (count == null) return "unknown";
  for (const [unit, size] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]]) {
    if (count >= size) return `${(count / size).toFixed(2)} ${unit}`;
  }
  return `${count} B`;
}

function duration(seconds) {
  if (seconds == null) return "unknown";
  const whole = Math.round(seconds);
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60];
  return hours ? `${hours} h ${minutes} min` : minutes ? `${minutes} min ${whole % 60} s` : `${whole} s`;
}

const clock = (text) => new Date(text).toLocaleTimeString();

function showFigures(figures) {
  const pairs = Object.entries(figures).map(([name, value]) =>
    element("div", [element("dt", name), element("dd", value)]));
  by("figures").replaceChildren(...pairs);
}

function showProgress(progress) {
  by("progress").max = progress ? progress.total_steps : 1;
  by("progress").value = progress ? progress.step : 0;
  if (!progress) return showFigures({});
  showFigures({
    step: `${progress.step} / ${progress.total_steps}`,
    loss: progress.loss.toFixed(4),
    "learning rate": progress.lr.toPrecision(3),
    "tokens/s": progress.tokens_per_s == null ? "unknown" : Math.round(progress.tokens_per_s),
    "time left": duration(progress.eta_s),
    resident: bytes(progress.memory_bytes),
  });
}

// Queue

function rows(id, jobs, cells, columns) {
  const empty = element("tr", element("td", "none", { class: "none", colspan: columns }));
  const made = jobs.map((job) => element("tr", cells(job).map((cell) => element("td", cell))));
  by(id).replaceChildren(...(made.length ? made : [empty]));
}

function button(text, action, label) {
  const made = element("button", text, { "aria-label": label });
  made.addEventListener("click", action);
  return made;
}

function priorityChoice(job) {
  const choice = element("select", ["high", "normal", "low"].map((word) => element("option", word)),
    { "aria-label": `priority of job ${job.id}` });
  choice.value = job.priority;
  choice.addEventListener("change", () => act("priority", { job: job.id, priority: choice.value }));
  return choice;
}

function showQueue(queue) {
  const current = queue.current;
  state.current = current;
  const [word, look] = queue.stopping ? ["ending", "paused"] : queue.paused ? ["paused", "paused"]
    : current ? [current.phase, "works"] : ["idle", ""];
  by("state").textContent = word;
  by("state").className = `badge ${look}`;
  by("now").textContent = current ? `Job ${current.job_id}, ${current.file_name}, run ${current.run_id}`
    : queue.paused ? "Paused." : "Waiting for files in the inbox.";
  const can = { pause: !queue.paused, resume: queue.paused, skip: current, "eval-now": current };
  for (const made of document.querySelectorAll("[data-do]")) made.disabled = !can[made.dataset.do];
  rows("queue", queue.next, (job) => [String(job.id), job.file_name, priorityChoice(job),
    button("Skip", () => act("skip", { job: job.id }), `skip job ${job.id}`)], 4);
  const settled = ["done", "failed", "skipped"].map((word) => queue.counts[word]).join();
  if (settled === state.settled) return;
  Promise.all([readSettled(), readRuns()])
    .then(() => { state.settled = settled; }, (error) => notice(error.message, true));
}

async function readSettled() {
  const { settled } = await ask("jobs?limit=10");
  rows("settled", settled, (job) => [String(job.id), job.file_name, job.state,
    button("Retry", () => act("retry", { job: job.id }), `retry job ${job.id}`)], 4);
}

function showMemory(memory) {
  const lines = memory.ledger.categories.filter((line) => line.bytes > 0)
    .map((line) => [line.category.replaceAll("_", " "), bytes(line.bytes)]);
  lines.push(["heap", bytes(memory.heap)], ["resident", bytes(memory.host.rss)],
    ["free on the machine", bytes(memory.host.available)]);
  for (const gpu of memory.gpus ?? []) {
    lines.push([`GPU ${gpu.index} ${gpu.name ?? ""}`, `${bytes(gpu.used)} of ${bytes(gpu.total)}`]);
  }
  by("memory").replaceChildren(...lines.map((line) =>
    element("tr", line.map((cell) => element("td", cell)))));
}

function showEvent(event) {
  if (event.id <= state.event) return;
  state.event = event.id;
  const job = event.job_id == null ? "" : `job ${event.job_id}: `;
  const line = element("li", [element("time", clock(event.at), { datetime: event.at }), job + event.message]);
  by("events").prepend(line);
  while (by("events").children.length > EVENTS) by("events").lastChild.remove();
}

// Loss

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function drawChart() {
  state.chart?.destroy();
  const [accent, faint, line, good] = ["--accent", "--faint", "--line", "--good"].map(colour);
  const axis = { stroke: faint, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } };
  const series = [
    { label: "step" },
    { label: "smallest", stroke: line, points: { show: false } },
    { label: "largest", stroke: line, points: { show: false } },
    { label: "loss", stroke: accent, width: 2, points: { show: false } },
    { label: "held out", stroke: good, width: 2, points: { show: true, size: 7, fill: good }, spanGaps: true },
  ];
  state.chart = new uPlot({
    width: by("loss").clientWidth, height: 300, scales: { x: { time: false } },
    axes: [axis, axis], series, bands: [{ series: [2, 1], fill: line + "66" }], cursor: { drag: { x: true } },
  }, state.data, by("loss"));
}

// Points of evaluations stand at their own steps, between those of the curve.
function withEvals(course, evals) {
  const points = new Map();
  course.step.forEach((step, i) => points.set(step, [course.loss.min[i], course.loss.max[i], course.loss.mean[i], null]));
  for (const { step, loss } of evals) {
    if (loss == null) continue;
    if (!points.has(step)) points.set(step, [null, null, null, null]);
    points.get(step)[3] = loss;
  }
  const steps = [...points.keys()].sort((a, b) => a - b);
  return [steps, ...[0, 1, 2, 3].map((column) => steps.map((step) => points.get(step)[column]))];
}

async function showRun(id) {
  state.shown = id;
  const [course, evals] = id == null ? [{ step: [] , loss: { min: [], mean: [], max: [] } }, []]
    : await Promise.all([ask(`runs/${id}/metrics?points=${POINTS}`), ask(`runs/${id}/evals`)]);
  if (state.shown !== id) return;
  state.data = withEvals(course, evals);
  if (state.chart) state.chart.setData(state.data); else drawChart();
}

async function readRuns() {
  const runs = await ask("runs?limit=50");
  state.newest = runs.length ? runs[0].id : null;
  by("run").replaceChildren(...runs.map((run) =>
    element("option", `run ${run.id}, ${run.file_name ?? "no file"}, ${run.state}`, { value: run.id })));
  if (state.follow) state.shown = state.newest;
  if (state.shown != null) by("run").value = String(state.shown);
  await showRun(state.shown);
}

// Many steps make one reading of the curve.
let reading = null;
function readCurveSoon() {
  reading ??= setTimeout(() => {
    reading = null;
    showRun(state.shown).catch((error) => notice(error.message, true));
  }, 1000);
}

// The stream

// Read anew whenever it begins: what happened while nobody listened is among them.
async function readEvents() {
  const events = await ask(`events?limit=${EVENTS}`);
  by("events").replaceChildren();
  state.event = 0;
  for (const event of events.reverse()) showEvent(event);
}

function follow() {
  const stream = new EventSource("/api/stream");
  const on = (kind, then) => stream.addEventListener(kind, (event) => then(JSON.parse(event.data)));
  stream.onerror = () => {
    by("state").textContent = "no connection";
    by("state").className = "badge gone";
    // A refusal, such as of a token that is another by now, ends the stream for good.
    if (stream.readyState === EventSource.CLOSED) setTimeout(follow, 5000);
  };
  on("hello", () => Promise.all([readRuns(), readEvents()]).catch((error) => notice(error.message, true)));
  on("queue", showQueue);
  on("progress", showProgress);
  on("memory", showMemory);
  on("event", showEvent);
  on("run", () => readRuns().catch((error) => notice(error.message, true)));
  for (const kind of ["step", "eval", "gap"]) {
    on(kind, (row) => { if (row.run_id === state.shown) readCurveSoon(); });
  }
}

async function begin() {
  for (const made of document.querySelectorAll("[data-do]")) {
    // The job that is shown, which need not be the one that runs by now.
    made.addEventListener("click", () => act(made.dataset.do,
      made.dataset.do === "skip" ? { job: state.current?.job_id } : {}));
  }
  by("run").addEventListener("change", () => {
    const id = Number(by("run").value);
    state.follow = id === state.newest;
    showRun(id).catch((error) => notice(error.message, true));
  });
  window.addEventListener("resize", () => state.chart?.setSize({ width: by("loss").clientWidth, height: 300 }));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawChart);
  const status = await ask("status");
  by("where").textContent = `${status.state_dir}, ${status.daemon.version}`;
  follow();
}

begin().catch((error) => notice(error.message, true));
