// Light or dark: as the system has it, until somebody chooses; the choice is remembered.

import { by } from "./dom.js";
import { keep } from "./kept.js";
import { tell } from "./stream.js";

const system = matchMedia("(prefers-color-scheme: dark)");
const root = document.documentElement;

export const isDark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";

function show() {
  by("theme").textContent = isDark() ? "☀" : "☾";
  by("theme").setAttribute("aria-label", isDark() ? "Light theme" : "Dark theme");
  by("theme").title = "t";
  tell("theme", isDark());
}

export function toggleTheme() {
  root.dataset.theme = isDark() ? "light" : "dark";
  keep("theme", root.dataset.theme);
  show();
}

export function beginTheme() {
  by("theme").addEventListener("click", toggleTheme);
  system.addEventListener("change", show);
  show();
}
