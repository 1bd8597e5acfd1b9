// Questions to the daemon, and what is told of its answers.

import { by, visible } from "./dom.js";

// An answer, or an error that says what to do.
export async function ask(path, body) {
  const options = body === undefined ? {} : {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
  let response;
  try {
    response = await fetch(`/api/${path}`, options);
  } catch {
    throw new Error("the daemon does not answer");
  }
  const answer = await response.json().catch(() => ({ error: `the daemon answered ${response.status}` }));
  if (response.ok) return answer;
  const error = new Error(answer.hint ? `${answer.error} (${answer.hint})` : answer.error);
  error.status = response.status;
  throw error;
}

// Has something done, and says what came of it.
export async function act(path, body = {}) {
  try {
    notice((await ask(path, body)).message);
    return true;
  } catch (error) {
    notice(error.message, true);
    return false;
  }
}

let hiding;
export function notice(text, bad = false) {
  by("notice").textContent = visible(text);
  by("notice").className = bad ? "bad" : "";
  by("notice").hidden = false;
  clearTimeout(hiding);
  hiding = setTimeout(() => { by("notice").hidden = true; }, bad ? 10000 : 4000);
}

export const failed = (error) => notice(error.message, true);
