// What has happened: the newest events, and alerts until they are dismissed.

import { ask, failed } from "./api.js";
import { button, by, element, fill } from "./dom.js";
import { clock, moment } from "./figures.js";
import { draw } from "./frame.js";
import { on, tell } from "./stream.js";

const KEPT = 200;
const LOOKS = { failed: "bad", attempt_failed: "bad", trouble: "bad", refused: "bad", restarted: "bad", alert: "alert", done: "done" };
// An alert of yesterday is in the list, not above the page.
const ALERT_HOURS = 24;

// The newest first.
export let events = [];

export function line(event, time = moment) {
  const job = event.job_id == null ? "" : `job ${event.job_id}: `;
  return element("li", { class: LOOKS[event.kind] ?? "" },
    element("time", { datetime: event.at }, time(event.at)),
    element("span", { class: "kind" }, event.kind.replaceAll("_", " ")), job + event.message);
}

const short = (event) => line({ ...event, message: event.message.length > 160 ? `${event.message.slice(0, 160)}…` : event.message }, clock);

function dismissed() {
  try {
    return Number(localStorage.getItem("dismissed-alert") ?? 0);
  } catch {
    return 0;
  }
}

function dismiss(id) {
  try {
    localStorage.setItem("dismissed-alert", id);
  } catch {
    // It comes back with the page.
  }
  by("alerts").replaceChildren();
}

function showAlerts() {
  const since = Date.now() - ALERT_HOURS * 3600e3;
  const open = events.filter((event) => event.kind === "alert" && event.id > dismissed() && Date.parse(event.at) > since);
  fill(by("alerts"), open.slice(0, 3).map((event) => element("div", { class: "alert-strip" },
    element("strong", {}, event.details?.alert ? String(event.details.alert).replaceAll("_", " ") : "Alert"),
    element("span", {}, event.message), element("time", { class: "muted" }, moment(event.at)),
    button("Dismiss", () => dismiss(open[0].id)))));
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
  changed(event.kind === "alert");
}

async function read() {
  events = await ask("events?limit=20");
  changed(true);
}

export function beginEvents() {
  on("hello", () => read().catch(failed));
  on("event", take);
}
