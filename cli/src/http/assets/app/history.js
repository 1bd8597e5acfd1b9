// What memory was used for since the page was opened: nobody keeps what other processes held.

import { partsOf } from "./bar.js";
import { on } from "./stream.js";

// Half an hour at one reading every two seconds.
const KEPT = 900;

export const readings = [];
export let newest = null;

export function beginHistory() {
  on("memory", (memory) => {
    newest = memory;
    readings.push({ at: Date.now() / 1000, parts: partsOf(memory).parts });
    if (readings.length > KEPT) readings.shift();
  });
}
