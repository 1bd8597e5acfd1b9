// The course of a run in columns, as the server folds it: buckets of a power of two of steps, each
// with the smallest, the mean and the largest value. Steps that come later are folded in here.

export const SERIES = ["loss", "grad_norm", "lr", "mean_token_accuracy", "tokens_per_s"];

// Points of a chart; a bucket is halved away when there are twice as many.
export const POINTS = 320;

const SPANS = ["min", "mean", "max"];

export class Course {
  constructor(answer) {
    this.width = answer.bucket_steps;
    this.step = answer.step;
    // Steps in each bucket: the first one need not begin where its place does.
    this.count = answer.count;
    this.tokens = answer.num_tokens;
    this.series = Object.fromEntries(SERIES.map((name) => [name, answer[name]]));
    this.memory = answer.memory;
    // Steps bring their own; what was left out of the curve is not made up.
    this.keepsMemory = this.length === 0 || Object.keys(this.memory).length > 0;
  }

  get length() {
    return this.step.length;
  }

  get last() {
    return this.step.at(-1) ?? 0;
  }

  // The bucket that a step is in.
  place(step) {
    return Math.floor((step - 1) / this.width);
  }

  // Folds a step in that comes after those that are there.
  add(row) {
    if (row.step <= this.last) return;
    const merges = this.length > 0 && this.place(row.step) === this.place(this.last);
    const at = merges ? this.length - 1 : this.length;
    const count = merges ? this.count[at] : 0;
    for (const name of SERIES) {
      const value = row[name] ?? null;
      this.fold(name, at, count, { min: value, mean: value, max: value }, 1);
    }
    if (this.keepsMemory) this.foldMemory(at, (name) => row.memory?.[name] ?? 0, Object.keys(row.memory ?? {}));
    this.step[at] = row.step;
    this.count[at] = count + 1;
    this.tokens[at] = row.num_tokens;
    if (this.length > 2 * POINTS) this.halve();
  }

  fold(name, at, count, next, nextCount) {
    const columns = this.series[name];
    const known = columns.mean[at] ?? null;
    if (next.mean === null || known === null) {
      for (const span of SPANS) columns[span][at] = next.mean === null ? columns[span][at] ?? null : next[span];
      return;
    }
    columns.min[at] = Math.min(columns.min[at], next.min);
    columns.max[at] = Math.max(columns.max[at], next.max);
    columns.mean[at] = (known * count + next.mean * nextCount) / (count + nextCount);
  }

  foldMemory(at, of, names) {
    for (const name of names) this.memory[name] ??= new Array(at).fill(0);
    for (const [name, column] of Object.entries(this.memory)) column[at] = Math.max(column[at] ?? 0, of(name));
  }

  // Makes one bucket of two.
  halve() {
    const whole = new Course({
      bucket_steps: this.width * 2, step: [], count: [], num_tokens: [], memory: {},
      ...Object.fromEntries(SERIES.map((name) => [name, { min: [], mean: [], max: [] }])),
    });
    for (let from = 0; from < this.length; from++) {
      const merges = whole.length > 0 && whole.place(this.step[from]) === whole.place(whole.last);
      const at = merges ? whole.length - 1 : whole.length;
      const count = merges ? whole.count[at] : 0;
      for (const name of SERIES) {
        const columns = this.series[name];
        const next = Object.fromEntries(SPANS.map((span) => [span, columns[span][from]]));
        whole.fold(name, at, count, next, this.count[from]);
      }
      whole.foldMemory(at, (name) => this.memory[name][from], Object.keys(this.memory));
      whole.step[at] = this.step[from];
      whole.count[at] = count + this.count[from];
      whole.tokens[at] = this.tokens[from];
    }
    Object.assign(this, whole, { keepsMemory: this.keepsMemory });
  }
}

// Exponential moving average without the pull of its beginning, as TensorBoard's slider has it.
export function smoothed(values, weight) {
  let mean = 0;
  let seen = 0;
  return values.map((value) => {
    if (value == null) return null;
    mean = mean * weight + (1 - weight) * value;
    seen += 1;
    return mean / (1 - weight ** seen);
  });
}
