// One chart: a legend that tells the values under the cursor, and a plot by uPlot. All charts of steps
// share the cursor and the stretch that is looked at.

import { colour, element, fill } from "./dom.js";
import { bytes, clock, whole } from "./figures.js";
import { draw, drop } from "./frame.js";
import { on } from "./stream.js";

const all = new Set();
// There is nothing between two steps.
const STEPS = [...Array(13).keys()].flatMap((power) => [1, 2, 5].map((one) => one * 10 ** power));
const timeOf = (seconds) => clock(seconds * 1000);

// Lines of the page that cannot be changed by the data: label, colour, width, dash, points, fill.
export class Chart {
  // `words` makes text of a value; `zoom(from, to)` is called with a stretch, or nothing for all;
  // with `ground` the values stand on zero.
  constructor(host, { name, words, zoom, sync = "steps", time = false, ground = false }) {
    Object.assign(this, { host, name, words, zoom, sync, time, ground, series: [], data: null, range: null, log: false });
    this.hidden = new Set();
    this.legend = element("div", { class: "legend" });
    this.plot = element("div", { class: "plot", tabindex: 0, role: "img", on: { keydown: (event) => this.key(event) } });
    fill(host, this.legend, this.plot);
    this.observer = new ResizeObserver(() => draw(this.plot, () => this.paint()));
    this.observer.observe(host);
    all.add(this);
  }

  // To be called before its host goes: uPlot listens to the window, and the theme keeps all charts.
  end() {
    this.observer.disconnect();
    all.delete(this);
    drop(this.plot);
    this.chart?.destroy();
    this.chart = null;
  }

  // Shows columns; the first one is x. `range` is the stretch of x, or `null` for all of it.
  show(series, data, { range = null, log = false, raw = data, bands = [] } = {}) {
    const key = JSON.stringify([series, log, bands]);
    this.isOther ||= key !== this.shape;
    Object.assign(this, { shape: key, series, data, range, log, raw, bands });
    draw(this.plot, () => this.paint());
  }

  paint() {
    const width = this.plot.clientWidth;
    const height = this.host.clientHeight - this.legend.offsetHeight;
    if (!this.data || width < 40 || height < 40) return;
    if (!this.chart || this.isOther) this.make(width, height);
    else if (this.chart.width !== width || Math.abs(this.chart.height - height) > 2) this.chart.setSize({ width, height });
    this.isOther = false;
    const x = this.data[0];
    const [from, to] = this.range ?? [x[0] ?? 0, x.at(-1) ?? 1];
    this.chart.batch(() => {
      this.chart.setData(this.data, false);
      this.chart.setScale("x", { min: from, max: to > from ? to : from + 1 });
    });
    this.tell(this.chart.cursor.left >= 0 ? this.chart.cursor.idx : null);
  }

  make(width, height) {
    this.chart?.destroy();
    const [line, faint] = [colour("grid"), colour("faint")];
    const axis = { stroke: faint, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1, size: 4 },
      font: "11px system-ui, sans-serif" };
    // Bytes are told in powers of two.
    const steps = this.words === bytes ? { incrs: Array.from({ length: 50 }, (_, power) => 2 ** power) } : {};
    const y = { ...axis, ...steps, size: 62, values: (_, marks) => marks.map((mark) => (mark === null ? "" : this.words(mark, true))) };
    const x = { ...axis, size: 26, values: (_, marks) => marks.map(this.time ? timeOf : whole), space: this.time ? 90 : 56,
      ...(this.time ? {} : { incrs: STEPS }) };
    const series = this.series.map((one) => ({
      label: one.label, width: (one.width ?? 1.5), dash: one.dash, spanGaps: one.gaps ?? false,
      stroke: one.colour && colour(one.colour), fill: one.fill && colour(one.fill),
      points: { show: one.points ?? false, size: 6, fill: one.colour && colour(one.colour) },
      show: !this.hidden.has(one.label),
    }));
    const wash = colour("raw").replace("rgb(", "rgba(").replace(")", ", 0.35)");
    this.chart = new uPlot({
      width, height, series: [{ label: "step" }, ...series], axes: [x, y], legend: { show: false },
      scales: { x: { time: this.time }, y: { distr: this.log ? 3 : 1, ...(this.ground ? { range: (_, low, high) => [0, (high || 1) * 1.06] } : {}) } },
      bands: this.bands.map((pair) => ({ series: pair, fill: wash })),
      cursor: {
        drag: { x: Boolean(this.zoom), y: false, setScale: false, dist: 4 },
        points: { size: 6 },
        sync: this.sync && { key: this.sync, setSeries: false,
          filters: { pub: (kind) => kind === "mousemove" || kind === "mouseleave" } },
        bind: { dblclick: () => () => { this.zoom?.(); } },
      },
      hooks: { setSelect: [(chart) => this.selected(chart)], setCursor: [(chart) => this.tell(chart.cursor.idx)] },
      padding: [8, 18, 0, 0],
    }, this.data, this.plot);
    this.writeLegend();
  }

  selected(chart) {
    const { left, width } = chart.select;
    if (width < 4) return;
    chart.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
    this.zoom?.(chart.posToVal(left, "x"), chart.posToVal(left + width, "x"));
  }

  writeLegend() {
    this.values = this.series.map(() => element("b"));
    this.at = element("b");
    const entry = (one, place) => element("button", {
      type: "button", "aria-pressed": String(!this.hidden.has(one.label)),
      on: { click: (event) => this.toggle(one.label, event.currentTarget, place) },
    }, swatch(one.fill ?? one.colour), `${one.label} `, this.values[place]);
    const named = this.series.map((one, place) => (one.label ? entry(one, place) : null));
    fill(this.legend, element("span", { class: "muted" }, this.time ? "" : "step ", this.at), named);
  }

  toggle(label, entry, place) {
    if (!this.hidden.delete(label)) this.hidden.add(label);
    entry.setAttribute("aria-pressed", String(!this.hidden.has(label)));
    this.chart.setSeries(place + 1, { show: !this.hidden.has(label) });
  }

  // Values at a point, or the newest of each line.
  tell(at) {
    if (!this.values) return;
    const x = this.data[0][at ?? this.data[0].length - 1];
    this.at.textContent = x == null ? "" : this.time ? timeOf(x) : String(x);
    this.series.forEach((_, place) => {
      const column = this.raw[place + 1];
      const value = at == null ? column.findLast((one) => one != null) : column[at];
      this.values[place].textContent = value == null ? "–" : this.words(value);
    });
    if (at == null) {
      const words = this.series.filter((one) => one.label).map((one) =>
        `${one.label} ${this.values[this.series.indexOf(one)].textContent}`);
      this.plot.setAttribute("aria-label", `${this.name}: ${words.join(", ")}. Plus and minus zoom, arrows move, 0 shows all.`);
    }
  }

  key(event) {
    if (!this.chart || !this.zoom || event.ctrlKey || event.metaKey || event.altKey) return;
    const { min, max } = this.chart.scales.x;
    const span = max - min;
    const stretch = {
      "+": [min + span / 4, max - span / 4], "=": [min + span / 4, max - span / 4],
      "-": [min - span / 2, max + span / 2],
      ArrowLeft: [min - span / 4, max - span / 4], ArrowRight: [min + span / 4, max + span / 4],
      0: [null],
    }[event.key];
    if (!stretch) return;
    event.preventDefault();
    event.stopPropagation();
    this.zoom(...stretch);
  }
}

export const swatch = (name) => {
  const made = element("i", { class: "swatch" });
  made.style.background = `var(--${name})`;
  return made;
};

// Says that nothing is there to be drawn, or takes that back.
export function nothing(host, words) {
  host.querySelector(".nothing")?.remove();
  if (words) host.append(element("p", { class: "nothing" }, words));
}

on("theme", () => {
  for (const chart of all) {
    chart.isOther = true;
    draw(chart.plot, () => chart.paint());
  }
});
