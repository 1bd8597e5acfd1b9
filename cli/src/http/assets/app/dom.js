// Elements with text, never with markup: names, messages and answers are other people's.

export const by = (id) => document.getElementById(id);

// What does something instead of being seen: controls, and marks that turn the direction of text.
const ACTS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g;

// Text in which nothing acts; lines and tabs stay.
export function visible(text) {
  return String(text).replace(ACTS, (mark) => `\\u{${mark.codePointAt(0).toString(16)}}`);
}

// An element with attributes, and with children that are elements or text.
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [kind, then] of Object.entries(value)) made.addEventListener(kind, then);
    else if (name === "class") made.className = value;
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  add(made, children);
  return made;
}

export function add(parent, children) {
  for (const child of [children].flat(Infinity)) {
    if (child != null && child !== false) parent.append(child instanceof Node ? child : visible(child));
  }
}

// Replaces what an element holds.
export function fill(parent, ...children) {
  parent.replaceChildren();
  add(parent, children);
}

export function button(text, then, attributes = {}) {
  return element("button", { type: "button", ...attributes, on: { click: then } }, text);
}

// The same choices as before are left alone: a list that is open stays open.
export function choices(select, pairs, chosen) {
  const key = JSON.stringify(pairs);
  if (select.dataset.key !== key) {
    select.dataset.key = key;
    fill(select, pairs.map(([value, text]) => element("option", { value }, text)));
  }
  if (chosen != null) select.value = String(chosen);
}

// A colour of the style sheet as a canvas understands it.
const probe = element("i", { hidden: true });
export function colour(name) {
  if (!probe.isConnected) document.body.append(probe);
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}
