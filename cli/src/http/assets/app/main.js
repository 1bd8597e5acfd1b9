// The page: what is there is read once, and the stream says what changes.

import { ask, failed } from "./api.js";
import { by, fill } from "./dom.js";
import { beginEvents } from "./events.js";
import { drawSoon } from "./frame.js";
import { beginHistory } from "./history.js";
import { beginKeyboard, bind } from "./keyboard.js";
import { beginLayers } from "./layers.js";
import { beginNow } from "./now.js";
import { beginShown, otherRun, zoomTo } from "./shown.js";
import { beginSteering, evaluateNow, togglePause } from "./steer.js";
import { beginSteps, toggleLog } from "./steps.js";
import { follow, on } from "./stream.js";
import { beginTheme, toggleTheme } from "./theme.js";

// The first view is there; the others are read when they are first opened. Each has
// `begin(section)` and, where an address has more to say, `open(rest)`.
const VIEWS = {
  run: null,
  evals: () => import("./evals.js"),
  memory: () => import("./memory.js"),
  queue: () => import("./queue.js"),
  data: () => import("./data.js"),
  plan: () => import("./plan.js"),
  logs: () => import("./logs.js"),
};

const begun = new Map();

// One that could not be read is read again when it is opened the next time.
const begin = (view) => VIEWS[view]().then(
  (read) => { read.begin(by(`view-${view}`)); return read; },
  (error) => { begun.delete(view); throw error; });

async function route() {
  const [name, rest] = location.hash.replace(/^#\//, "").split("/");
  const view = name in VIEWS ? name : "run";
  for (const other of Object.keys(VIEWS)) by(`view-${other}`).hidden = other !== view;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#/${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (VIEWS[view]) {
    if (!begun.has(view)) begun.set(view, begin(view));
    (await begun.get(view)).open?.(rest);
  }
  drawSoon();
}

function bindKeys() {
  Object.keys(VIEWS).forEach((view, at) => bind(String(at + 1), `to ${by(`view-${view}`).getAttribute("aria-label")}`, () => {
    location.hash = `#/${view}`;
  }));
  bind("p", "pause or resume", togglePause);
  bind("e", "evaluate now", evaluateNow);
  bind("[", "the run before", () => otherRun(-1));
  bind("]", "the run after", () => otherRun(1));
  bind("l", "loss on a logarithmic scale", toggleLog);
  bind("0", "the whole run in the charts", () => zoomTo().catch(failed));
  bind("t", "light or dark", toggleTheme);
}

async function sayWhere() {
  const { state_dir, daemon, base_model } = await ask("status");
  const model = base_model ? `, ${base_model.architecture} from ${base_model.base_model}` : "";
  fill(by("where"), `chandler ${daemon.version} on ${state_dir}${model}`);
}

// The first picture does not wait for what follows; a hidden tab has none.
if (!document.hidden) await new Promise((then) => { requestAnimationFrame(() => setTimeout(then)); });

beginTheme();
beginKeyboard();
bindKeys();
beginSteering();
beginNow();
beginEvents();
beginSteps();
beginLayers();
beginShown();
beginHistory();
addEventListener("hashchange", () => route().catch(failed));
route().catch(failed);
on("refused", () => sayWhere().catch(failed));
follow();
sayWhere().catch(failed);
