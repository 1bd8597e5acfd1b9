// What of a file is trained: its first rows as the model gets them, the trained tokens in colour.

import { ask, failed, notice } from "./api.js";
import { button, by, choices, element, fill } from "./dom.js";
import { whole } from "./figures.js";
import { on } from "./stream.js";

function row({ line, tokens, trained, cut, shortened, pieces }) {
  const notes = [`${whole(tokens)} tokens`, `${whole(trained)} trained`, cut && "cut at its end", shortened && "text shortened"];
  return element("article", { class: "answer" },
    element("div", { class: "line" }, element("h3", {}, `Line ${line}`), element("span", { class: "muted" }, notes.filter(Boolean).join(", "))),
    element("p", { class: "text" }, pieces.map(([text, isTrained]) => element("span", { class: isTrained ? "trained" : "untrained" }, text))));
}

function problem({ error, hint, bad_lines: bad }) {
  return element("div", { class: "report" }, element("p", { class: "bad" }, error),
    bad.map(({ line, reason }) => element("p", {}, `line ${line}: ${reason}`)), hint && element("p", {}, `What to do: ${hint}`));
}

let reading = false;
let again = false;

// The daemon makes one preview at a time: what is chosen while one is read is read after it.
async function show() {
  again = reading;
  if (reading) return;
  reading = true;
  by("data-show").disabled = true;
  try {
    do {
      again = false;
      await showChosen();
    } while (again);
  } finally {
    reading = false;
    by("data-show").disabled = false;
  }
}

async function showChosen() {
  const id = by("data-job").value;
  if (id === "") return;
  fill(by("data-rows"), element("p", { class: "muted" }, "Reading…"));
  try {
    const answer = await ask(`jobs/${id}/preview?rows=${by("data-count").value}`);
    if (again) return;
    fill(by("data-rows"), answer.rows.map(row), answer.problem && problem(answer.problem),
      !answer.rows.length && !answer.problem && element("p", { class: "muted" }, "The file has no rows."));
  } catch (error) {
    fill(by("data-rows"), element("p", { class: "bad" }, error.message));
  }
}

let wanted = null;

async function offer() {
  const { running, queued, settled } = await ask("jobs?limit=50");
  const pairs = [...running, ...queued, ...settled].map((job) => [job.id, `${job.id} · ${job.file_name} · ${job.state}`]);
  choices(by("data-job"), pairs.length ? pairs : [["", "no file yet"]], wanted ?? (by("data-job").value || pairs[0]?.[0]));
  if (wanted !== null && !pairs.some(([id]) => id === wanted)) notice(`job ${wanted} is not among the newest`, true);
}

export function begin(section) {
  fill(section, element("div", { class: "card" },
    element("div", { class: "line" }, element("h2", {}, "What is trained"),
      element("div", { class: "controls" },
        element("label", {}, "File ", element("select", { id: "data-job", on: { change: () => { location.hash = `#/data/${by("data-job").value}`; } } })),
        element("label", {}, "Rows ", element("select", { id: "data-count", on: { change: show } },
          [10, 20, 50, 100].map((count) => element("option", { value: count }, count)))),
        button("Show", show, { id: "data-show" }),
        element("span", { class: "text" }, element("span", { class: "trained" }, "trained"), " ", element("span", { class: "untrained" }, "not trained")))),
    element("div", { id: "data-rows" })));
  on("queue", () => { if (!section.hidden) offer().catch(failed); });
}

export function open(rest) {
  wanted = rest ? Number(rest) : null;
  offer().then(show).catch(failed);
}
