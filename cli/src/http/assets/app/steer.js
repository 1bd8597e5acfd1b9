// What the daemon can be asked for from everywhere on the page.

import { act } from "./api.js";
import { by } from "./dom.js";
import { on } from "./stream.js";

let queue = null;

export function togglePause() {
  if (queue) act(queue.paused ? "resume" : "pause");
}

export function evaluateNow() {
  if (queue?.current) act("eval-now");
}

// The second press of a double click was not meant as an answer.
const DOUBLE_MS = 300;

// A button that acts when it is pressed again within a few seconds: on `what()` of the first press.
// The event `rest` takes the question back.
export function sure(button, words, then, what = () => null) {
  let waits = null;
  let asked = null;
  const before = button.textContent;
  const rest = () => { clearTimeout(waits); waits = null; button.textContent = before; };
  button.addEventListener("click", (event) => {
    if (waits) {
      if (event.timeStamp - asked.at < DOUBLE_MS) return;
      rest();
      then(asked.what);
      return;
    }
    asked = { at: event.timeStamp, what: what() };
    button.textContent = words;
    waits = setTimeout(rest, 4000);
  });
  button.addEventListener("rest", rest);
  return button;
}

const job = () => queue?.current?.job_id ?? null;

function show(now) {
  const before = job();
  queue = now;
  if (job() !== before) by("skip-job").dispatchEvent(new Event("rest"));
  by("pause").textContent = now.paused ? "Resume" : "Pause";
  by("pause").className = now.paused ? "main" : "";
  by("pause").disabled = now.stopping;
  by("eval-now").disabled = by("skip-job").disabled = !now.current;
}

export function beginSteering() {
  by("pause").addEventListener("click", togglePause);
  by("eval-now").addEventListener("click", evaluateNow);
  // The job that was asked about, which need not be the one that runs by then.
  sure(by("skip-job"), "Really skip?", (asked) => act("skip", { job: asked }), job);
  on("queue", show);
}
