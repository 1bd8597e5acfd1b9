// Numbers, times and sizes in words. What is not known says so.

const UNITS = [["TiB", 2 ** 40], ["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 2 ** 10]];

export function bytes(count, atAxis = false) {
  if (count == null) return "unknown";
  for (const [unit, size] of UNITS) {
    if (Math.abs(count) < size) continue;
    const digits = (count / size).toPrecision(count / size >= 1000 ? 4 : 3);
    return `${atAxis ? Number(digits) : digits} ${unit}`;
  }
  return `${count} B`;
}

export function duration(seconds) {
  if (seconds == null || !Number.isFinite(seconds)) return "unknown";
  const whole = Math.round(seconds);
  const [days, hours, minutes] = [Math.floor(whole / 86400), Math.floor(whole / 3600) % 24, Math.floor(whole / 60) % 60];
  if (days) return `${days} d ${hours} h`;
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min ${whole % 60} s` : `${whole} s`;
}

export function whole(count) {
  return count == null ? "unknown" : Math.round(count).toLocaleString("en-US").replaceAll(",", "\u2009");
}

// A value as a person wants it: enough digits to tell it from its neighbour. At an axis, no more.
export function figure(value, atAxis = false) {
  if (value == null || Number.isNaN(value)) return "unknown";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (atAxis) return size < 1e-3 || size >= 1e6 ? value.toExponential().replace("-", "\u2212") : String(Number(value.toPrecision(6)));
  if (size >= 1e5) return whole(value);
  if (size < 1e-3) return value.toExponential(2).replace("e-", "e\u2212");
  return size >= 100 ? value.toFixed(1) : value.toPrecision(4);
}

export function percent(share) {
  return share == null ? "unknown" : `${(share * 100).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;
}

// What makes text of a metric's value: losses and what is made of them are figures, all others are
// shares.
export const wordsOf = (metric) => (/(^|_)(loss|perplexity|gap)$/.test(metric) ? figure : percent);

export const clock = (text) => new Date(text).toLocaleTimeString([], { hour12: false });

export function moment(text) {
  if (!text) return "";
  const date = new Date(text);
  const today = new Date().toDateString() === date.toDateString();
  return today ? clock(text) : `${date.toLocaleDateString()} ${clock(text)}`;
}

export const category = (name) => name.replaceAll("_", " ");
