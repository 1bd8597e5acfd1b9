// The memory plan of the run that is shown: where its bytes go, and what else would fit.

import { ask } from "./api.js";
import { swatch } from "./charts.js";
import { by, element, fill } from "./dom.js";
import { bytes, category, whole } from "./figures.js";
import { draw } from "./frame.js";
import { shown } from "./shown.js";
import { on } from "./stream.js";
import { isDark } from "./theme.js";

const cells = (tag, words, numbers) => words.map((word, at) =>
  element(tag, { class: numbers.includes(at) ? "number" : "", ...(tag === "th" ? { scope: "col" } : {}) }, word));

const table = (label, head, rows, numbers) => element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label },
  element("table", {}, element("thead", {}, element("tr", {}, cells("th", head, numbers))),
    element("tbody", {}, rows.map((row) => element("tr", {}, cells("td", row, numbers))))));

function showPlan(plan) {
  const lines = plan.lines.filter((line) => line.bytes > 0);
  const verdict = plan.fits == null ? "what is available is unknown" : plan.fits ? "it fits" : "it does NOT fit";
  fill(by("plan-lines"),
    table("Planned memory", ["what for", "bytes", "when", "how it is computed"], lines.map((line) =>
      [[swatch(line.category), category(line.category)], bytes(line.bytes), line.phase, line.formula]), [1]),
    element("dl", { class: "tiles" }, [["training peak", plan.train_peak], ["evaluation peak", plan.eval_peak], ["available", plan.budget]]
      .map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, bytes(value)))),
    element("div", {}, element("dt", {}, "verdict"), element("dd", { class: plan.fits === false ? "bad" : "good" }, verdict))));
}

function showTable({ rows, beyond }) {
  fill(by("plan-table"),
    table("What fits", ["preset", "share", "of", "batch", "effective", "blocks kept", "training", "headroom", "evaluation"], rows.map((row) => {
      const { best } = row;
      const rest = best ? [`${best.choice.micro_batch_rows} × ${best.choice.micro_batches}`, whole(best.effective_batch), best.choice.kept_blocks,
        bytes(best.train_peak), bytes(best.headroom), bytes(best.eval_peak)] : ["nothing fits", "", "", "", "", ""];
      return [row.preset, `${row.share} %`, bytes(row.budget), ...rest];
    }), [1, 2, 3, 4, 5, 6, 7, 8]),
    beyond && element("p", { class: "muted" }, `A batch of ${beyond.micro_batch_rows} that keeps all activations does not fit: training takes ${
      bytes(beyond.train_peak)}, ${bytes(beyond.lacking)} more than there are; ${bytes(beyond.mostly_bytes)} of it for ${category(beyond.mostly)}.`));
}

function showPicture() {
  const asked = new URLSearchParams({ run: shown.id, theme: isDark() ? "dark" : "light" });
  const label = "The plan as bars: training and evaluation by category, and what fits into each share";
  fill(by("plan-picture"), element("img", { class: "picture", src: `/api/plan.svg?${asked}`, alt: label }));
}

let drawn = null;

function show() {
  const plan = shown.run?.plan;
  by("plan-none").hidden = Boolean(plan);
  by("plan-body").hidden = !plan;
  if (!plan || drawn === shown.id) return;
  drawn = shown.id;
  showPlan(plan);
  showPicture();
  readTable(shown.id);
}

// The table of the run before is gone at once: it would be taken for this one's.
async function readTable(id) {
  fill(by("plan-table"), element("p", { class: "muted" }, "Computing…"));
  try {
    const { table: fits } = await ask(`plan/table?run=${id}`);
    if (drawn === id) showTable(fits);
  } catch (error) {
    if (drawn !== id) return;
    fill(by("plan-table"), element("p", { class: "bad" }, error.message));
    // It is asked for again when there is something new.
    drawn = null;
  }
}

export function begin(section) {
  fill(section, element("p", { id: "plan-none", class: "card muted" }, "This run has no plan yet: it is made once the file was read."),
    element("div", { id: "plan-body", hidden: true },
      element("div", { class: "card" }, element("h2", {}, "What this run was planned to use"), element("div", { id: "plan-lines" })),
      element("div", { class: "card" }, element("h2", {}, "In a picture"), element("div", { id: "plan-picture", class: "scroll" })),
      element("div", { class: "card" }, element("h2", {}, "What would fit, for rows of data.max_length tokens"), element("div", { id: "plan-table" }))));
  const soon = () => draw(section, show);
  on("shown", soon);
  on("theme", () => { if (shown.run?.plan) draw(by("plan-picture"), showPicture); });
  soon();
}
