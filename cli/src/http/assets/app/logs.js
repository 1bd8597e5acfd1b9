// The log, and every event. The stream says when there are new lines.

import { ask, failed } from "./api.js";
import { button, by, element, fill } from "./dom.js";
import { events, line as eventLine } from "./events.js";
import { clock } from "./figures.js";
import { draw } from "./frame.js";
import { on } from "./stream.js";

const FIXED = ["timestamp", "level", "message", "target"];

let lines = [];
// The newest first, without a gap.
let listed = [];

function shownLine(line) {
  const more = Object.entries(line).filter(([name]) => !FIXED.includes(name))
    .map(([name, value]) => `${name}=${typeof value === "string" ? value : JSON.stringify(value)}`);
  return element("div", { class: line.level },
    element("time", { datetime: line.timestamp, title: line.timestamp }, line.timestamp ? clock(line.timestamp) : ""),
    element("span", { class: "target" }, `${line.level} ${(line.target ?? "").replace(/^chandler_/, "")}`),
    line.message ?? "", more.length > 0 && element("span", { class: "muted" }, ` ${more.join(" ")}`));
}

function showLog() {
  const wanted = by("log-words").value.toLowerCase();
  const found = lines.filter((line) => !wanted || JSON.stringify(line).toLowerCase().includes(wanted));
  fill(by("log-lines"), found.map(shownLine), !found.length && element("p", { class: "muted" }, "No such lines."));
}

async function readLog() {
  const asked = new URLSearchParams({ level: by("log-level").value, lines: by("log-count").value });
  const answer = await ask(`logs?${asked}`);
  lines = answer.lines;
  fill(by("log-more"), answer.more ? "There are older lines in logs/." : "");
  draw(by("log-lines"), showLog);
}

const logSoon = () => readLog().catch(failed);

// What was missed while there was no connection may be more than the newest: then the list begins
// anew with those, and the older ones are read again.
function takeEvents() {
  const fresh = events.filter((event) => event.id > (listed[0]?.id ?? 0));
  const joins = fresh.length < events.length;
  if (!joins) by("older").hidden = false;
  listed = joins ? [...fresh, ...listed] : [...events];
  draw(by("all-events"), showEvents);
}

function showEvents() {
  fill(by("all-events"), listed.map((event) => eventLine(event)));
}

async function readOlder() {
  const oldest = listed.at(-1)?.id;
  const more = oldest ? await ask(`events?limit=100&before=${oldest}`) : [];
  if (listed.at(-1)?.id !== oldest) return;
  listed = [...listed, ...more];
  by("older").hidden = more.length < 100;
  showEvents();
}

export function begin(section) {
  const select = (id, pairs) => element("select", { id, on: { change: logSoon } }, pairs.map(([value, words]) => element("option", { value }, words)));
  fill(section, element("div", { class: "pair top" },
    element("div", { class: "card" }, element("div", { class: "line" }, element("h2", {}, "Log"),
      element("div", { class: "controls" },
        element("label", {}, "Level ", select("log-level", [["info", "info and up"], ["warn", "warnings and errors"], ["error", "errors"], ["trace", "everything"]])),
        element("label", {}, "Lines ", select("log-count", [["200", "200"], ["1000", "1000"]])),
        element("label", {}, "Find ", element("input", { id: "log-words", type: "search", on: { input: showLog } })))),
    element("div", { id: "log-lines", class: "lines" }), element("p", { id: "log-more", class: "muted" })),
    element("div", { class: "card" }, element("h2", {}, "Events"), element("ol", { id: "all-events", class: "events" }),
      button("Older events", () => readOlder().catch(failed), { id: "older" }))));
  on("log", () => draw(section, logSoon));
  on("events", takeEvents);
  logSoon();
  takeEvents();
}
