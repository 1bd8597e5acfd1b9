// What came of a job: why it failed, with its bad lines, or what was learned; and its runs.

import { ask, failed } from "./api.js";
import { button, element, fill } from "./dom.js";
import { figure, moment, whole } from "./figures.js";
import { showRun, shown } from "./shown.js";

function failure({ errors, hint, bad_lines: bad = [] }) {
  return [
    errors.map((error, depth) => element("p", { class: depth ? "" : "bad" }, depth ? `because ${error}` : error)),
    bad.length > 0 && element("table", { class: "bad-lines" },
      element("thead", {}, element("tr", {}, element("th", { scope: "col", class: "number" }, "line"), element("th", { scope: "col" }, "what is wrong with it"))),
      element("tbody", {}, bad.map(({ line, reason }) => element("tr", {}, element("td", { class: "number" }, line), element("td", { class: "name" }, reason))))),
    hint && element("p", {}, element("strong", {}, "What to do: "), hint),
  ];
}

function open(run) {
  showRun(run.id, run.id === shown.runs[0]?.id).catch(failed);
  location.hash = "#/run";
}

function runs(list) {
  if (!list.length) return null;
  return element("table", {}, element("thead", {}, element("tr", {},
    ["run", "state", "began", "steps", "loss"].map((word) => element("th", { scope: "col", class: word === "began" ? "wide" : "" }, word)))),
  element("tbody", {}, list.map((run) => element("tr", {}, element("td", {}, button(`run ${run.id}`, () => open(run), { class: "link" })),
    element("td", {}, run.state), element("td", { class: "wide" }, moment(run.started_at)), element("td", {}, run.last_step == null ? "–" : whole(run.last_step)),
    element("td", {}, run.last_loss == null ? "–" : figure(run.last_loss))))));
}

export async function report(host, id) {
  const { job, runs: list } = await ask(`jobs/${id}`);
  const { report: told } = job;
  const body = Array.isArray(told?.errors) ? failure(told)
    : told ? element("details", {}, element("summary", {}, "what was recorded"), element("pre", {}, JSON.stringify(told, null, 1))) : null;
  fill(host, body, runs(list), element("p", { class: "muted" }, `${job.attempts} attempt${job.attempts === 1 ? "" : "s"}; the file is ${job.path} `,
    element("a", { href: `#/data/${job.id}` }, "look into it")));
}
