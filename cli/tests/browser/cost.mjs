// What viewers cost: CPU time of the daemon's threads for HTTP, beside that of all its threads, with
// five viewers and with none. `CHANDLER_TEST_BINARY=target/release/chandler node cost.mjs`

import { readFileSync, readdirSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";

import { Daemon } from "./daemon.mjs";

const SECONDS = 20;
// Ticks of the clock that /proc counts in.
const TICKS = 100;

// CPU seconds of a process so far: of its threads for HTTP, and of all.
function spent(pid) {
  let [http, all] = [0, 0];
  for (const thread of readdirSync(`/proc/${pid}/task`)) {
    const text = readFileSync(`/proc/${pid}/task/${thread}/stat`, "utf8");
    const name = text.slice(text.indexOf("(") + 1, text.lastIndexOf(")"));
    const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
    const seconds = (Number(fields[11]) + Number(fields[12])) / TICKS;
    all += seconds;
    if (name.startsWith("http")) http += seconds;
  }
  return [http, all];
}

async function view(daemon, signal) {
  const stream = await fetch(`${daemon.url}/api/stream`, { headers: { Authorization: `Bearer ${daemon.token}` }, signal });
  for await (const chunk of stream.body) void chunk;
}

const daemon = new Daemon(32);
try {
  await daemon.start();
  daemon.add("again.jsonl");
  while ((await daemon.ask("status")).daemon.current?.phase !== "training") await sleep(100);
  for (const viewers of [0, 5]) {
    const ending = new AbortController();
    const watching = Array.from({ length: viewers }, () => view(daemon, ending.signal).catch(() => {}));
    await sleep(2000);
    const { daemon: { pid } } = await daemon.ask("status");
    const [before, steps] = [spent(pid), (await daemon.ask("runs?limit=1"))[0].last_step];
    await sleep(SECONDS * 1000);
    const after = spent(pid);
    const done = (await daemon.ask("runs?limit=1"))[0].last_step - steps;
    const [http, all] = [after[0] - before[0], after[1] - before[1]];
    console.log(`${viewers} viewers: ${(done / SECONDS).toFixed(1)} steps/s; HTTP ${http.toFixed(2)} s of ${all.toFixed(2)} s of CPU, ${(100 * http / all).toFixed(2)} %`);
    ending.abort();
    await Promise.all(watching);
  }
} finally {
  daemon.end();
}
