// The queue: what runs, what waits by priority, and what was settled, with its report.

import { act, ask, failed } from "./api.js";
import { button, by, element, fill } from "./dom.js";
import { bytes, duration, moment } from "./figures.js";
import { draw } from "./frame.js";
import { report } from "./report.js";
import { sure } from "./steer.js";
import { on } from "./stream.js";

const LANES = ["high", "normal", "low"];

let jobs = null;
let drawn = null;
let known = null;
let opened = null;

async function change(path, body) {
  await act(path, body);
  await read();
}

const prioritise = (job, priority) => change("priority", { job, priority });

function waiting(job) {
  const at = LANES.indexOf(job.priority);
  const move = (sign, lane, words) => button(sign, () => prioritise(job.id, lane).catch(failed),
    { class: "icon", disabled: !lane, "aria-label": `${words} priority for job ${job.id}`, title: `${words} priority` });
  const row = element("div", { class: "job", draggable: "true", "data-job": job.id },
    element("span", { class: "muted" }, job.id), element("span", { class: "name" }, job.file_name),
    element("span", { class: "muted" }, bytes(job.size_bytes)),
    element("span", { class: "acts" }, move("↑", LANES[at - 1], "higher"), move("↓", LANES[at + 1], "lower"),
      element("a", { href: `#/data/${job.id}` }, "data"),
      sure(button("Skip", () => {}, { "aria-label": `skip job ${job.id}` }), "Really?", () => change("skip", { job: job.id }).catch(failed))));
  row.addEventListener("dragstart", (event) => {
    event.dataTransfer.setData("text/plain", String(job.id));
    event.dataTransfer.effectAllowed = "move";
    row.classList.add("dragged");
  });
  row.addEventListener("dragend", () => row.classList.remove("dragged"));
  return row;
}

function lane(priority) {
  const mine = jobs.queued.filter((job) => job.priority === priority);
  const made = element("div", { class: "lane", "data-lane": priority },
    element("h3", {}, `${priority} priority`), mine.map(waiting), !mine.length && element("p", { class: "none" }, "nothing waits"));
  made.addEventListener("dragover", (event) => { event.preventDefault(); made.classList.add("over"); });
  made.addEventListener("dragleave", () => made.classList.remove("over"));
  made.addEventListener("drop", (event) => {
    event.preventDefault();
    made.classList.remove("over");
    const job = jobs.queued.find((one) => String(one.id) === event.dataTransfer.getData("text/plain"));
    if (job && job.priority !== priority) prioritise(job.id, priority).catch(failed);
  });
  return made;
}

function settled(job) {
  const took = job.started_at && job.finished_at ? duration((Date.parse(job.finished_at) - Date.parse(job.started_at)) / 1000) : "";
  const bad = job.report?.bad_lines?.length;
  const isOpen = opened === job.id;
  const row = element("tr", { "data-job": job.id }, element("td", { class: "number" }, job.id),
    element("td", { class: "name" }, job.file_name, bad ? element("div", { class: "bad" }, `${bad} bad line${bad === 1 ? "" : "s"}`) : null),
    element("td", {}, element("span", { class: `badge ${job.state}` }, job.state)),
    element("td", { class: "wide" }, moment(job.finished_at)), element("td", { class: "wide number" }, took),
    element("td", { class: "acts" },
      element("a", { href: isOpen ? "#/queue" : `#/queue/${job.id}`, "aria-expanded": String(isOpen), role: "button" }, isOpen ? "close" : "report"), " ",
      button("Retry", () => change("retry", { job: job.id }).catch(failed), { "aria-label": `retry job ${job.id}` })));
  return isOpen ? [row, element("tr", {}, element("td", { colspan: 6 }, element("div", { id: "report", class: "report" })))] : row;
}

function show() {
  if (!jobs) return;
  fill(by("running"), jobs.running.map((job) => element("div", { class: "job" }, element("span", { class: "muted" }, job.id),
    element("span", { class: "name" }, job.file_name), element("span", { class: "muted" }, `attempt ${job.attempts}, since ${moment(job.started_at)}`),
    element("span", { class: "acts" }, element("a", { href: `#/data/${job.id}` }, "data")))),
  !jobs.running.length && element("p", { class: "muted" }, "Nothing runs."));
  fill(by("lanes"), LANES.map(lane));
  fill(by("settled"), jobs.settled.map(settled),
    !jobs.settled.length && element("tr", {}, element("td", { colspan: 6, class: "muted" }, "Nothing was settled yet.")));
  if (by("report")) report(by("report"), opened).catch(failed);
}

// What is as it was is left alone, with whatever question was asked in it.
async function read() {
  jobs = await ask("jobs?limit=50");
  const now = JSON.stringify(jobs);
  if (now === drawn) return;
  drawn = now;
  show();
}

// When somebody looks.
const readSoon = () => draw(by("queue-body"), () => read().catch(failed));

// The stream tells of the whole queue now and again; what is not about jobs changes nothing here.
function told(queue) {
  const now = JSON.stringify([queue.counts, queue.next, queue.current?.job_id]);
  if (now === known) return;
  known = now;
  readSoon();
}

export function begin(section) {
  const head = ["job", "file", "state", "settled", "took", ""].map((word, at) =>
    element("th", { scope: "col", class: ["number", "", "", "wide", "wide number", ""][at] }, word || element("span", { class: "away" }, "actions")));
  fill(section, element("div", { class: "pair top", id: "queue-body" },
    element("div", { class: "card" }, element("h2", {}, "Running"), element("div", { id: "running" }),
      element("h2", { class: "below" }, "Waiting"), element("p", { class: "muted" }, "Drag a file to another priority, or use its arrows."),
      element("div", { id: "lanes" })),
    element("div", { class: "card" }, element("h2", {}, "Settled"),
      element("table", {}, element("thead", {}, element("tr", {}, head)), element("tbody", { id: "settled" })))));
  on("queue", told);
  on("hello", readSoon);
  readSoon();
}

export function open(rest) {
  opened = rest ? Number(rest) : null;
  show();
}
