// What is happening at this moment: state, progress, the newest figures, what is next.

import { memoryBar } from "./bar.js";
import { by, element, fill } from "./dom.js";
import { bytes, duration, figure, percent, whole, wordsOf } from "./figures.js";
import { draw } from "./frame.js";
import { shown } from "./shown.js";
import { on } from "./stream.js";

// Metrics of a run's own set that have lines of their own.
const OWN_SET = "held-out";
const OWN = ["loss", "perplexity", "token_accuracy"];

const now = { queue: null, progress: null, step: null, memory: null, connected: false };

function stateOf(queue) {
  if (!now.connected) return ["no connection", "gone"];
  if (!queue) return ["connecting", ""];
  if (queue.stopping) return ["ending", "paused"];
  if (queue.paused) return ["paused", "paused"];
  return queue.current ? [queue.current.phase, "works"] : ["idle", ""];
}

function showState() {
  const [word, look] = stateOf(now.queue);
  by("state").textContent = word;
  by("state").className = `badge ${look}`;
  const share = now.queue?.current && now.progress ? `${Math.floor(100 * now.progress.step / now.progress.total_steps)} % ` : "";
  document.title = `${share}${word} – chandler`;
}

function title(queue) {
  const { current } = queue;
  if (current) return `${current.file_name}, job ${current.job_id}, run ${current.run_id}`;
  if (queue.paused) return "Paused: nothing is learned until it is resumed";
  return queue.next.length ? "About to begin" : "Waiting for files in the inbox";
}

// What the curve knows of the run that runs, until a step is told.
function ofCurve() {
  const { whole: curve } = shown;
  if (!curve?.length || shown.id !== now.queue.current.run_id) return {};
  return { grad_norm: curve.series.grad_norm.mean.at(-1), num_tokens: curve.tokens.at(-1) };
}

// The step that is shown is the newest that was told, of the run that runs.
function newest() {
  const { progress, step, queue } = now;
  if (!queue?.current) return null;
  const live = step?.run_id === queue.current.run_id ? step : null;
  if (!progress && !live) return null;
  return { ...ofCurve(), ...progress, ...live, total_steps: progress?.total_steps, eta_s: progress?.eta_s };
}

const tile = (name, value, note) =>
  element("div", {}, element("dt", {}, name), element("dd", {}, value, note && element("small", {}, ` ${note}`)));

function showNow() {
  showState();
  if (!now.queue) return;
  const at = newest();
  fill(by("now-title"), title(now.queue));
  by("progress").max = at?.total_steps ?? 1;
  by("progress").value = at?.step ?? 0;
  by("progress").hidden = !now.queue.current;
  by("now-time").textContent = at?.total_steps
    ? `${percent(at.step / at.total_steps)}${at.eta_s == null || now.queue.paused ? "" : `, ${duration(at.eta_s)} left`}` : "";
  const { counts } = now.queue;
  fill(by("figures"), at ? [
    tile("step", whole(at.step), at.total_steps && `of ${whole(at.total_steps)}`),
    tile("loss", figure(at.loss)),
    tile("gradient norm", figure(at.grad_norm)),
    tile("learning rate", figure(at.lr)),
    tile("tokens a second", whole(at.tokens_per_s)),
    tile("tokens seen", whole(at.num_tokens)),
    tile("memory", bytes(now.memory?.host.rss ?? at.memory_bytes)),
  ] : ["queued", "done", "failed", "skipped"].map((state) => tile(state, whole(counts[state] ?? 0))));
}

function showNext() {
  const { next, counts } = now.queue;
  const more = counts.queued - Math.min(3, next.length);
  fill(by("next"), next.slice(0, 3).map((job) => element("li", {}, element("span", {}, job.file_name),
    element("span", { class: "muted" }, job.priority === "normal" ? `job ${job.id}` : `job ${job.id}, ${job.priority}`))),
    more > 0 && element("li", { class: "muted" }, `and ${more} more`),
    !next.length && element("li", { class: "muted" }, "Nothing waits."));
}

function showEval() {
  const last = shown.evals.at(-1);
  if (!last) return fill(by("newest-eval"), element("p", { class: "muted" }, "None yet."));
  const first = shown.evals[0];
  const row = (name, key) => (last[key] == null ? null : element("li", {}, element("span", {}, name),
    element("span", {}, wordsOf(key)(last[key]), first !== last && first[key] != null &&
      element("span", { class: "muted" }, ` from ${wordsOf(key)(first[key])}`))));
  const others = (last.scores ?? []).filter((one) => one.set !== OWN_SET || !OWN.includes(one.metric));
  const score = (one) => element("li", {}, element("span", {}, `${one.set} ${one.metric.replaceAll("_", " ")}`),
    element("span", {}, wordsOf(one.metric)(one.value),
      one.base != null && element("span", { class: "muted" }, ` from ${wordsOf(one.metric)(one.base)}`),
      one.best != null && one.best !== one.value && element("span", { class: "muted" }, `, best ${wordsOf(one.metric)(one.best)}`)));
  fill(by("newest-eval"), element("ul", { class: "parts" },
    element("li", {}, element("span", {}, "step"), element("span", {}, whole(last.step))),
    row("held-out loss", "loss"), row("perplexity", "perplexity"),
    row("token accuracy", "token_accuracy"), row("exact match", "exact_match"),
    others.slice(0, 4).map(score)));
}

const showMemory = () => fill(by("memory-now"), memoryBar(now.memory, shown.run?.plan));

export function beginNow() {
  const nowSoon = () => draw(by("figures"), showNow);
  // Its text is read without being seen: in the title of a tab.
  on("connection", (is) => { now.connected = is; showState(); });
  on("queue", (queue) => {
    now.queue = queue;
    if (!queue.current) now.step = null;
    showState();
    nowSoon();
    draw(by("next"), showNext);
  });
  on("progress", (progress) => { now.progress = progress; showState(); nowSoon(); });
  on("step", (step) => { now.step = step; nowSoon(); });
  on("memory", (memory) => { now.memory = memory; draw(by("memory-now"), showMemory); nowSoon(); });
  for (const kind of ["shown", "evals"]) {
    on(kind, () => {
      draw(by("newest-eval"), showEval);
      nowSoon();
      if (now.memory) draw(by("memory-now"), showMemory);
    });
  }
}
