// Memory at this moment, as parts of what there is where our tensors are, the machine's or a GPU's:
// ours by category, the rest of this process, other processes, and what is free.

import { swatch } from "./charts.js";
import { element } from "./dom.js";
import { bytes, category } from "./figures.js";

const atLeastNothing = (value) => (value == null || Number.isNaN(value) ? null : Math.max(0, value));

// What the machine has for us, used by anybody; within the limit of a control group where there is one.
function machine(host) {
  const limited = host.cgroup_limit != null && !(host.total < host.cgroup_limit);
  if (limited) return { total: host.cgroup_limit, used: host.cgroup_used };
  return { total: host.total, used: host.total != null && host.available != null ? host.total - host.available : null };
}

// The GPU that our tensors are on, with what this process has of it by the driver's books; `null` on
// the CPU. `used` and `total` are unknown where the driver does not list it.
export function gpuOf(memory) {
  if (!memory.on_gpu) return null;
  const seen = (memory.gpus ?? []).find((gpu) => gpu.uuid === memory.on_gpu.uuid);
  return { index: seen?.index, name: seen?.name, used: seen?.used, total: seen?.total, own: memory.on_gpu.own };
}

// The parts, in the order in which they are drawn; bytes are `null` where they are not known.
export function partsOf(memory) {
  const ours = memory.ledger.categories.filter((line) => line.bytes > 0);
  const gpu = gpuOf(memory);
  const { total, used } = gpu ?? machine(memory.host);
  const own = gpu ? gpu.own : memory.host.rss ?? memory.heap;
  const rest = own == null ? null : atLeastNothing(own - memory.ledger.total);
  const others = own == null || used == null ? null : atLeastNothing(used - Math.max(own, memory.ledger.total));
  const parts = ours.map((line) => ({ name: line.category, words: category(line.category), bytes: line.bytes }));
  parts.push({ name: "rest", words: "rest of this process", bytes: rest });
  parts.push({ name: "others", words: "other processes", bytes: others });
  parts.push({ name: "free", words: "free", bytes: total == null || used == null ? null : atLeastNothing(total - used) });
  return { parts, total };
}

// A bar of the parts with the plan's end as a mark, and the parts in words.
export function memoryBar(memory, plan) {
  const { parts, total } = partsOf(memory);
  const known = parts.filter((part) => part.bytes > 0);
  const sum = total ?? known.reduce((all, part) => all + part.bytes, 0);
  const words = known.map((part) => `${part.words} ${bytes(part.bytes)}`).join(", ");
  const bar = element("div", { class: "stack", role: "img", "aria-label": words }, known.map((part) => {
    const piece = element("i", { title: `${part.words} ${bytes(part.bytes)}` });
    piece.style.background = `var(--${part.name})`;
    piece.style.flex = `${part.bytes / sum} 0 0`;
    return piece;
  }));
  if (plan?.peak && plan.peak < sum) {
    const mark = element("i", { class: "mark", title: `planned peak ${bytes(plan.peak)}` });
    mark.style.left = `${100 * plan.peak / sum}%`;
    bar.append(mark);
  }
  return [bar, element("ul", { class: "parts" }, parts.map((part) =>
    element("li", {}, swatch(part.name), element("span", {}, part.words), element("span", {}, bytes(part.bytes)))))];
}

// Each GPU with who uses it.
export function gpus(memory) {
  return (memory.gpus ?? []).map((gpu) => element("div", {},
    element("h3", {}, `GPU ${gpu.index} ${gpu.name ?? ""}`),
    element("p", { class: "muted" }, `${bytes(gpu.used)} of ${bytes(gpu.total)} in use`),
    element("ul", { class: "parts" }, (gpu.processes ?? []).map((one) =>
      element("li", {}, element("span", {}, `${one.name ?? "unknown"} (pid ${one.pid})`), element("span", {}, bytes(one.used)))))));
}
