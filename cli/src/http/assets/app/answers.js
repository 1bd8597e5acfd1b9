// The answers of two evaluations side by side, with what differs marked, and one prompt's answers over
// all steps.

import { ask, failed } from "./api.js";
import { difference } from "./diff.js";
import { button, by, choices, element, fill } from "./dom.js";
import { percent, whole } from "./figures.js";
import { draw } from "./frame.js";
import { shown } from "./shown.js";
import { on } from "./stream.js";

const PAGE = 20;
const REFERENCE = "reference";
const BASE = "base";

// What was read of a run: answers by step and set.
let read = new Map();
let rows = PAGE;
let pairs = [];

const keyOf = (sample, at) => (sample.position == null ? String(at) : `${sample.set}/${sample.position}/${sample.attempt ?? 0}`);

async function samplesOf(run, step, set) {
  const key = `${run}/${step}/${set}`;
  const asked = new URLSearchParams({ ...(step === BASE ? { base: true } : { step }), ...(set && { set }) });
  const samples = read.get(key) ?? await ask(`runs/${run}/samples?${asked}`);
  read.set(key, samples);
  return samples;
}

// How right an answer is, from 0 to 1, where that is known.
const scoreOf = (sample) => sample?.score ?? (sample?.exact_match == null ? null : Number(sample.exact_match));

// The answers that are chosen, two and two, and the sets that there are.
async function pair() {
  const [run, first, second, set] = [shown.id, by("answers-first").value, by("answers-second").value, by("answers-set").value];
  if (first === "") return { sets: [], pairs: [] };
  const before = await samplesOf(run, first, set);
  const after = second === REFERENCE ? null : await samplesOf(run, second, set);
  const others = new Map((after?.samples ?? []).map((sample, at) => [keyOf(sample, at), sample]));
  return { sets: before.sets ?? [], pairs: before.samples.map((sample, at) => ({ before: sample,
    after: after ? others.get(keyOf(sample, at)) : null, isReference: !after })) };
}

function showSets(sets) {
  by("answers-sets").hidden = sets.length < 2;
  choices(by("answers-set"), [["", "all"], ...sets.map((set) => [set, set])], by("answers-set").value || "");
}

// How much better the later answer is; nothing is said where either was not scored.
function gain({ before, after }) {
  const [was, is] = [scoreOf(before), scoreOf(after)];
  return was === null || is === null ? 0 : is - was;
}

const FILTERS = {
  all: () => true,
  changed: ({ before, after }) => after && before.text !== after.text,
  better: (both) => gain(both) > 0,
  worse: (both) => gain(both) < 0,
  wrong: ({ before, after }) => scoreOf(after ?? before) < 1 && scoreOf(after ?? before) !== null,
};

const marked = (parts, tag) => parts.map(([text, isChanged]) => (isChanged ? element(tag, {}, text) : text));

function side(title, sample, parts, tag) {
  const score = scoreOf(sample);
  const look = score === null ? "" : score >= 1 ? "good" : score > 0 ? "" : "bad";
  return element("div", { class: "side" },
    element("p", {}, element("span", {}, title), score !== null && element("span", { class: look },
      sample.exact_match === true || score === 1 ? "✓ right" : score === 0 ? "✗ wrong" : percent(score)),
    sample?.new_tokens != null && element("span", {}, `${whole(sample.new_tokens)} tokens`),
    sample?.seconds != null && element("span", {}, `${sample.seconds.toFixed(2)} s`)),
    element("p", { class: "text" }, sample ? marked(parts, tag) : element("span", { class: "muted" }, "not asked")));
}

function card({ before, after, isReference }, titles) {
  const other = isReference ? before.reference ?? "" : after?.text ?? "";
  const [left, right] = difference(before.text, other);
  const reference = element("div", { class: "side" }, element("p", {}, "reference"),
    element("p", { class: "text" }, isReference ? marked(right, "ins") : before.reference ?? element("span", { class: "muted" }, "none")));
  const sides = isReference ? [side(titles[0], before, left, "del"), reference]
    : [reference, side(titles[0], before, left, "del"), side(titles[1], after, right, "ins")];
  const over = before.position == null ? null : button("over all steps", (event) => showOver(before, event.currentTarget), { class: "link" });
  return element("article", { class: "answer" },
    element("details", { open: before.prompt.length < 400 }, element("summary", {}, before.set ? `${before.set} ${before.position}` : "prompt"),
      element("p", { class: "text" }, before.prompt)),
    element("div", { class: `sides ${sides.length === 3 ? "three" : ""}` }, sides), over);
}

// One prompt's answers over the steps, each beside the one before it.
async function showOver(sample, pressed) {
  try {
    const { base, answers } = await ask(`runs/${shown.id}/answers?${new URLSearchParams({ set: sample.set, position: sample.position })}`);
    let before = "";
    const all = [...base.map((answer) => ({ ...answer, step: null })), ...answers];
    pressed.replaceWith(element("ol", { class: "plain" }, all.map((answer) => {
      const parts = difference(before, answer.text)[1];
      before = answer.text;
      return element("li", {}, element("span", { class: "muted" }, `${answer.step === null ? "base model" : `step ${answer.step}`}${answer.attempt ? `.${answer.attempt}` : ""}`),
        element("span", { class: "text" }, marked(parts, "ins")));
    })));
  } catch (error) {
    failed(error);
  }
}

function show() {
  const wanted = pairs.filter(FILTERS[by("answers-filter").value]);
  const titles = [by("answers-first"), by("answers-second")].map((select) => (select.value === BASE ? "base model" : `step ${select.value}`));
  const changed = pairs.filter(FILTERS.changed).length;
  fill(by("answers-count"), pairs.length ? `${wanted.length} of ${pairs.length} answers, ${changed} differ` : "");
  fill(by("answers-list"), wanted.slice(0, rows).map((one) => card(one, titles)),
    wanted.length > rows && button(`Show ${Math.min(PAGE, wanted.length - rows)} more`, () => { rows += PAGE; show(); }));
}

let turn = 0;

// Whatever is chosen while answers are read has the next turn; what was read for the one before is
// not shown.
async function compare() {
  const mine = ++turn;
  const found = await pair();
  if (mine !== turn) return;
  rows = PAGE;
  ({ pairs } = found);
  showSets(found.sets);
  show();
}

const compareSoon = () => compare().catch(failed);

// The first evaluation and the newest, until somebody chooses others.
let chosen = false;
let ofRun = null;
function offer() {
  if (ofRun !== shown.id) {
    read = new Map();
    chosen = false;
    ofRun = shown.id;
  }
  const steps = shown.evals.map((row) => row.step);
  by("answers").hidden = !steps.length;
  if (!steps.length) return;
  const [first, second] = [by("answers-first").value, by("answers-second").value];
  const ofBase = shown.evals.some((row) => row.scores?.some((score) => score.of_base)) ? [[BASE, "base model"]] : [];
  const pairsOf = [...ofBase, ...steps.map((step) => [step, step === 0 ? "before the first step" : `step ${step}`])];
  choices(by("answers-first"), pairsOf, chosen ? first : steps[0]);
  choices(by("answers-second"), [...pairsOf, [REFERENCE, "the reference"]], chosen ? second : steps.at(-1));
  compareSoon();
}

export function beginAnswers(host) {
  const select = (id, words) => element("label", {}, `${words} `, element("select", { id, on: { change: () => { chosen = true; compareSoon(); } } }));
  const filter = element("select", { id: "answers-filter", on: { change: () => { rows = PAGE; show(); } } },
    [["all", "all"], ["changed", "that differ"], ["better", "that became better"], ["worse", "that became worse"], ["wrong", "that are wrong"]]
      .map(([value, words]) => element("option", { value }, words)));
  const sets = element("span", { id: "answers-sets", hidden: true }, select("answers-set", "Set"));
  fill(host, element("div", { class: "line" }, element("h2", {}, "Answers side by side"),
    element("div", { class: "controls" }, select("answers-first", "From"), select("answers-second", "to"), sets,
      element("label", {}, "Answers ", filter), element("span", { id: "answers-count" }))),
  element("div", { id: "answers-list" }));
  showSets([]);
  for (const kind of ["shown", "evals"]) on(kind, () => draw(host.parentElement, offer));
  offer();
}
