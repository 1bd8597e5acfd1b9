// Keys for what is done often, and the dialog that lists them.

import { by, element, fill } from "./dom.js";

const keys = new Map();

// Binds a key; `words` say in the dialog what it does.
export function bind(key, words, then) {
  keys.set(key, { words, then });
}

function list() {
  const rows = [...keys].map(([key, { words }]) => [element("dt", {}, element("kbd", {}, key)), element("dd", {}, words)]);
  const chart = [["+ −", "in a chart: nearer, farther"], ["← →", "in a chart: earlier, later"], ["Tab", "to the next control or chart"]]
    .map(([key, words]) => [element("dt", {}, element("kbd", {}, key)), element("dd", {}, words)]);
  fill(by("keys-list"), rows, chart);
}

export function help() {
  if (by("keys").open) return by("keys").close();
  list();
  by("keys").showModal();
}

const types = (target) => target.closest?.("input:not([type=range], [type=checkbox]), textarea, select");

export function beginKeyboard() {
  by("help").addEventListener("click", help);
  by("keys-close").addEventListener("click", () => by("keys").close());
  bind("?", "this list", help);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || types(event.target)) return;
    if (by("keys").open && event.key !== "?") return;
    const bound = keys.get(event.key);
    if (!bound) return;
    event.preventDefault();
    bound.then();
  });
}
