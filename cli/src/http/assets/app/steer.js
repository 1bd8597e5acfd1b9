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

// A button that acts when it is pressed again within a few seconds.
export function sure(button, words, then) {
  let waits = null;
  const before = button.textContent;
  const rest = () => { clearTimeout(waits); waits = null; button.textContent = before; };
  button.addEventListener("click", () => {
    if (waits) { rest(); then(); return; }
    button.textContent = words;
    waits = setTimeout(rest, 4000);
  });
  return button;
}

function show(now) {
  queue = now;
  by("pause").textContent = now.paused ? "Resume" : "Pause";
  by("pause").className = now.paused ? "main" : "";
  by("pause").disabled = now.stopping;
  by("eval-now").disabled = by("skip-job").disabled = !now.current;
}

export function beginSteering() {
  by("pause").addEventListener("click", togglePause);
  by("eval-now").addEventListener("click", evaluateNow);
  // The job that is shown, which need not be the one that runs by then.
  sure(by("skip-job"), "Really skip?", () => act("skip", { job: queue?.current?.job_id ?? null }));
  on("queue", show);
}
