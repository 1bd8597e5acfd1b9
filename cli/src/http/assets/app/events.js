// What has happened: the newest events, and alerts until they are dismissed.

import { ask, failed } from "./api.js";
import { button, by, element, fill } from "./dom.js";
import { clock, moment } from "./figures.js";
import { draw } from "./frame.js";
import { keep, kept } from "./kept.js";
import { on, tell } from "./stream.js";

const KEPT = 200;
const LOOKS = { failed: "bad", attempt_failed: "bad", trouble: "bad", refused: "bad", restarted: "bad", alert: "alert", done: "done" };
// Alerts above the page; the next ones move up.
const STRIPS = 3;
const MOST_DISMISSED = 500;

// The newest first.
export let events = [];
// The newest alerts, dismissed or not, the newest first.
let alerts = [];
// Whose events they are: a port may be another daemon's tomorrow.
let stateDir = null;
// Dismissed here, which is all that there is where the browser keeps nothing.
const here = new Set();

export function line(event, time = moment) {
  const job = event.job_id == null ? "" : `job ${event.job_id}: `;
  return element("li", { class: LOOKS[event.kind] ?? "" },
    element("time", { datetime: event.at }, time(event.at)),
    element("span", { class: "kind" }, event.kind.replaceAll("_", " ")), job + event.message);
}

const short = (event) => line({ ...event, message: event.message.length > 160 ? `${event.message.slice(0, 160)}…` : event.message }, clock);

// A number comes again where a state directory was made anew; a time does not.
const keyOf = (event) => `${event.id} ${event.at}`;
const dismissedOf = () => `dismissed-alerts ${stateDir}`;

// Read each time: another tab may have dismissed some.
function dismissed() {
  try {
    return new Set([...JSON.parse(kept(dismissedOf()) ?? "[]"), ...here]);
  } catch {
    return new Set(here);
  }
}

function dismiss(those) {
  those.forEach((event) => here.add(keyOf(event)));
  keep(dismissedOf(), JSON.stringify([...dismissed()].slice(-MOST_DISMISSED)));
  showAlerts();
}

const strip = (event) => element("div", { class: "alert-strip" },
  element("strong", {}, event.details?.alert ? String(event.details.alert).replaceAll("_", " ") : "Alert"),
  element("span", {}, event.message), element("time", { class: "muted" }, moment(event.at)),
  button("Dismiss", () => dismiss([event])));

function showAlerts() {
  const done = dismissed();
  const open = alerts.filter((event) => !done.has(keyOf(event)));
  fill(by("alerts"), open.slice(0, STRIPS).map(strip), open.length > STRIPS && element("div", { class: "alert-strip" },
    element("span", {}, `and ${open.length - STRIPS} more`), button("Dismiss all", () => dismiss(open))));
}

function show() {
  fill(by("newest-events"), events.slice(0, 8).map(short));
}

function changed(hasAlerts) {
  if (hasAlerts) showAlerts();
  draw(by("newest-events"), show);
  tell("events", events);
}

function take(event) {
  if (event.id <= (events[0]?.id ?? 0)) return;
  events = [event, ...events].slice(0, KEPT);
  if (event.kind === "alert") alerts = [event, ...alerts];
  changed(event.kind === "alert");
}

// `read` and, before it, what came from the stream while it was read.
function joined(read, known, before) {
  const newest = Math.max(before, read[0]?.id ?? 0);
  return [...known.filter((event) => event.id > newest), ...read];
}

async function read() {
  const before = events[0]?.id ?? 0;
  const [newest, ofAlerts, where] = await Promise.all([
    ask("events?limit=20"), ask("events?limit=100&kind=alert"), stateDir ?? ask("status").then((status) => status.state_dir)]);
  events = joined(newest, events, before);
  alerts = joined(ofAlerts, alerts, before);
  stateDir = where;
  changed(true);
}

export function beginEvents() {
  on("hello", () => read().catch(failed));
  on("event", take);
}
