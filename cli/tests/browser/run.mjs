// What must work of the page, in the order in which a person would meet it.

import { strict as assert } from "node:assert";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";
import { performance } from "node:perf_hooks";

import { launch, open, until } from "./browser.mjs";
import { Daemon } from "./daemon.mjs";
import { takeScreenshots } from "./screenshots.mjs";

const VIEWS = ["run", "evals", "memory", "queue", "data", "plan", "logs"];
const MOST_BYTES = 200_000;
// 300 ms is the aim; a machine that does something else besides is no reason to fail.
const MOST_PAINT_MS = 900;
// What else a machine does makes a paint later, never sooner: the soonest of some counts.
const VISITS = 5;
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

const stepOf = (page) => page.$eval("#figures dd", (tile) => Number(tile.firstChild.data.replace(/\D/g, "")));
const go = async (page, view) => {
  await page.evaluate((hash) => { location.hash = hash; }, `#/${view}`);
  await page.waitForSelector(`#view-${view.split("/")[0]}:not([hidden])`);
};
const badge = (page, word) => until(page, (wanted) => document.getElementById("state").textContent === wanted, word);

const checks = {
  async "loads little, paints soon"({ browser, daemon }) {
    const paints = [];
    for (let visit = 0; visit < VISITS; visit++) {
      const { page, seen, context } = await open(browser, daemon);
      await page.waitForSelector("#chart-loss canvas");
      await badge(page, "training");
      await page.waitForTimeout(500);
      paints.push(Math.round(await page.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0].startTime)));
      assert(seen.bytes() < MOST_BYTES, `${seen.bytes()} bytes`);
      assert.deepEqual(seen.requests.filter((url) => !url.startsWith("/")), [], "asked elsewhere");
      if (visit === VISITS - 1) console.log(`   ${seen.bytes()} bytes from the daemon, nothing kept; first paint after ${paints.join(", ")} ms`);
      await context.close();
    }
    assert(Math.min(...paints) < MOST_PAINT_MS, `${paints} ms`);
  },

  async "follows the steps without asking"({ page, seen }) {
    await badge(page, "training");
    await page.waitForSelector("#chart-loss canvas");
    const before = await stepOf(page);
    const asked = seen.requests.length;
    await until(page, (step) => Number(document.querySelector("#figures dd").firstChild.data.replace(/\D/g, "")) > step + 3, before);
    assert.equal(seen.requests.length, asked, seen.requests.slice(asked).join());
    const name = await page.getAttribute("#chart-loss .plot", "aria-label");
    assert.match(name, /^Loss: .*smoothed \d/);
  },

  async "draws nothing where nobody looks"({ page }) {
    const frames = await page.evaluate(async () => {
      const ask = window.requestAnimationFrame;
      let asked = 0;
      window.requestAnimationFrame = (then) => { asked += 1; return ask(then); };
      Object.defineProperty(document, "hidden", { configurable: true, get: () => true });
      await new Promise((then) => setTimeout(then, 1500));
      const hidden = asked;
      delete document.hidden;
      document.dispatchEvent(new Event("visibilitychange"));
      await new Promise((then) => setTimeout(then, 1500));
      window.requestAnimationFrame = ask;
      return [hidden, asked];
    });
    assert.equal(frames[0], 0);
    assert(frames[1] > 0);
  },

  async "pauses and goes on"({ page }) {
    await page.click("#pause");
    await badge(page, "paused");
    await page.waitForTimeout(800);
    const still = await stepOf(page);
    await page.waitForTimeout(1000);
    assert.equal(await stepOf(page), still);
    await page.click("#pause");
    await badge(page, "training");
    await until(page, (step) => Number(document.querySelector("#figures dd").firstChild.data.replace(/\D/g, "")) > step, still);
  },

  async "shows what each layer measured"({ page }) {
    const told = () => page.textContent("#layers-told");
    await page.waitForSelector("#layers:not([hidden]) canvas");
    const meaning = await told();
    assert.match(await page.getAttribute("#layers-plot", "aria-label"), /^Layers, gradient norm: from \d/);
    await page.hover("#layers-plot", { position: { x: 3, y: 3 } });
    await until(page, () => /^step 1, embed_tokens: \d/.test(document.getElementById("layers-told").textContent));
    await page.mouse.move(0, 0);
    await page.selectOption("#layers-of", "update_ratio");
    await until(page, (before) => !["", before].includes(document.getElementById("layers-told").textContent), meaning);
    await page.focus("#layers-plot");
    for (const key of ["ArrowLeft", "ArrowDown", "ArrowDown"]) await page.keyboard.press(key);
    await until(page, () => /^step \d+, layers\.1: \d/.test(document.getElementById("layers-told").textContent));
    const columns = await page.$eval("#layers-plot canvas", (canvas) => canvas.width);
    await until(page, (before) => document.querySelector("#layers-plot canvas").width > before, columns);
    await page.selectOption("#layers-of", "grad_norm");
  },

  async "shows the bad lines of a failed file, and tries it again"({ page }) {
    await go(page, "queue");
    await page.click("#settled tr:has-text('bad.jsonl') a:has-text('report')");
    await page.waitForSelector("#report .bad-lines");
    assert.deepEqual(await page.$$eval("#report .bad-lines tbody td.number", (cells) => cells.map((cell) => cell.textContent)), ["2", "3"]);
    assert.match(await page.textContent("#report"), /What to do: /);
    await page.click("#settled tr:has-text('bad.jsonl') button:has-text('Retry')");
    await page.waitForSelector(".lane[data-lane=normal] .job:has-text('bad.jsonl')");
    assert.match(await page.textContent("#notice"), /is queued again/);
  },

  async "moves files in the queue by button and by drag"({ page, daemon }) {
    await go(page, "queue");
    await page.click(".job:has-text('later.jsonl') button[title='higher priority']");
    await page.waitForSelector(".lane[data-lane=high] .job:has-text('later.jsonl')");
    await page.dragAndDrop(".job:has-text('last.jsonl') .name", ".lane[data-lane=low]");
    await page.waitForSelector(".lane[data-lane=low] .job:has-text('last.jsonl')");
    const { queued } = await daemon.ask("jobs");
    const of = (name) => queued.find((job) => job.file_name === name).priority;
    assert.deepEqual([of("later.jsonl"), of("last.jsonl")], ["high", "low"]);
    const skip = page.locator(".job:has-text('bad.jsonl') button:has-text('Skip')");
    await skip.click();
    // Sooner, it would be the second press of a double click.
    await page.waitForTimeout(400);
    await page.click(".job:has-text('bad.jsonl') button:has-text('Really?')");
    await page.waitForSelector("#settled tr:has-text('bad.jsonl') .badge.skipped");
  },

  async "shows what is trained, and nothing in it acts"({ page, daemon }) {
    const { settled } = await daemon.ask("jobs");
    await go(page, `data/${settled.find((job) => job.file_name === "bad.jsonl").id}`);
    await page.waitForSelector("#data-rows .trained");
    assert.match(await page.textContent("#data-rows .trained"), /zwei/);
    const text = await page.textContent("#data-rows");
    assert(text.includes("\\u{1b}[2J\\u{202e}<img src=x>") && !text.includes("\u001b"), text);
    assert.match(text, /line 2: /);
    assert.equal(await page.$("#data-rows img"), null);
  },

  async "sets the answers of two evaluations side by side"({ page }) {
    await page.selectOption("#run", "1");
    await go(page, "evals");
    await page.waitForSelector("#answers-list .answer ins");
    assert((await page.$$("#answers-list del")).length > 0);
    assert.equal(await page.inputValue("#answers-first"), "0");
    const first = await page.textContent("#answers-list .side:nth-child(2) .text");
    await page.selectOption("#answers-first", { index: 1 });
    await until(page, (before) => document.querySelector("#answers-list .side:nth-child(2) .text").textContent !== before, first);
    await page.selectOption("#answers-second", "reference");
    await until(page, () => document.querySelectorAll("#answers-list .answer:first-child .side").length === 2);
    assert((await page.$$("#eval-charts canvas")).length >= 1);
    await page.selectOption("#answers-filter", "changed");
  },

  async "sets answers beside the base model's"({ page, daemon }) {
    const runs = await daemon.ask("runs");
    await page.selectOption("#run", String(runs.find((run) => run.state === "running").id));
    await go(page, "evals");
    await page.waitForSelector("#answers-first option[value=base]", { state: "attached" });
    await page.selectOption("#answers-first", "base");
    await until(page, () => document.querySelector("#answers-list .side:nth-child(2) span")?.textContent === "base model");
    assert.match(await page.textContent("#eval-charts"), /later: exact match/);
    await page.click("#answers-list .answer .link");
    await until(page, () => document.querySelector("#answers-list ol li span")?.textContent === "base model");
    await page.selectOption("#run", "1");
  },

  async "zooms by drag with finer points, and back by a double click"({ page, seen }) {
    await go(page, "run");
    const plot = page.locator("#chart-loss .u-over");
    await plot.scrollIntoViewIfNeeded();
    const box = await plot.boundingBox();
    const at = (share) => [box.x + box.width * share, box.y + box.height / 2];
    await page.mouse.move(...at(0.5));
    const step = await page.textContent("#chart-loss .legend b");
    assert.equal(await page.textContent("#chart-grad_norm .legend b"), step, "one cursor for all charts");
    await page.mouse.move(...at(0.3));
    await page.mouse.down();
    await page.mouse.move(...at(0.6), { steps: 4 });
    await page.mouse.up();
    await page.waitForSelector("#zoom-out:not([hidden])");
    const asked = seen.requests.findLast((path) => path.includes("/metrics?"));
    const [from, to] = ["from", "to"].map((name) => Number(new URLSearchParams(asked.split("?")[1]).get(name)));
    assert(from > 1 && to > from, asked);
    await page.mouse.dblclick(...at(0.5));
    await page.waitForSelector("#zoom-out", { state: "hidden" });
    await page.focus("#chart-loss .plot");
    await page.keyboard.press("+");
    await page.waitForSelector("#zoom-out:not([hidden])");
    await page.keyboard.press("0");
    await page.waitForSelector("#zoom-out", { state: "hidden" });
  },

  async "folds steps into buckets as the daemon does"({ page }) {
    // A run that was gone on with at step 7: its first bucket has two steps.
    const found = await page.evaluate(async () => {
      const { Course, POINTS, SERIES } = await import("/app/course.js");
      const columns = () => ({ min: [1], mean: [2], max: [3] });
      const course = new Course({ bucket_steps: 4, step: [8], count: [2], num_tokens: [80], memory: {},
        ...Object.fromEntries(SERIES.map((name) => [name, columns()])) });
      const add = (step, loss) => course.add({ step, loss, num_tokens: 10 * step });
      for (let step = 9; step <= 8 * POINTS + 9; step++) add(step, step < 17 ? 5 : 1);
      const { width, count, step, series: { loss } } = course;
      return { width, count: count.slice(0, 2), step: step.slice(0, 2), mean: loss.mean.slice(0, 2) };
    });
    assert.deepEqual(found, { width: 8, count: [2, 8], step: [8, 16], mean: [2, 5] });
    const words = await page.evaluate(async () => {
      const { wordsOf } = await import("/app/figures.js");
      return ["loss", "perplexity", "generalisation_gap", "chrf", "pass@4"].map((metric) => wordsOf(metric)(0.25));
    });
    assert.deepEqual(words, ["0.2500", "0.2500", "0.2500", "25 %", "25 %"]);
  },

  async "sets the ledger of a GPU against that GPU"({ page }) {
    const [machine, gpu, unknown] = await page.evaluate(async () => {
      const { partsOf } = await import("/app/bar.js");
      const GIB = 2 ** 30;
      const ledger = { categories: [{ category: "weights", bytes: 6 * GIB, peak: 6 * GIB }], total: 6 * GIB };
      const host = { rss: 7 * GIB, total: 64 * GIB, available: 50 * GIB };
      const gpus = [{ uuid: "GPU-a", index: 0, used: 9 * GIB, total: 80 * GIB },
        { uuid: "GPU-b", index: 1, used: 20 * GIB, total: 24 * GIB }];
      const shown = (memory) => {
        const { parts, total } = partsOf({ ledger, host, gpus, ...memory });
        return { total: total / GIB, ...Object.fromEntries(parts.map(({ name, bytes }) => [name, bytes == null ? null : bytes / GIB])) };
      };
      return [shown({}), shown({ on_gpu: { uuid: "GPU-b", own: 7.5 * GIB } }), shown({ on_gpu: { uuid: "GPU-b", own: null } })];
    });
    assert.deepEqual(machine, { total: 64, weights: 6, rest: 1, others: 7, free: 50 });
    assert.deepEqual(gpu, { total: 24, weights: 6, rest: 1.5, others: 12.5, free: 4 });
    assert.deepEqual(unknown, { total: 24, weights: 6, rest: null, others: null, free: 4 });
  },

  async "tells an alert until it is dismissed"({ page, daemon }) {
    daemon.record("alert", "alert: the loss is 9.000, where <b>2.000</b> is usual", { alert: "loss_spike", step: 7 });
    await page.waitForSelector("#alerts .alert-strip");
    assert.equal(await page.textContent("#alerts strong"), "loss spike");
    assert.match(await page.textContent("#alerts span"), /where <b>2.000<\/b> is usual/);
    await page.reload();
    await page.click("#alerts .alert-strip button");
    await page.waitForSelector("#alerts:empty", { state: "attached" });
    await page.reload();
    await badge(page, "training");
    await page.waitForSelector("#newest-events .alert", { state: "attached" });
    assert.equal(await page.$("#alerts .alert-strip"), null);
  },

  async "remembers the theme"({ page }) {
    const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    const light = await ground();
    await page.click("#theme");
    const dark = await ground();
    assert.notEqual(dark, light);
    await page.reload();
    assert.equal(await ground(), dark);
    await badge(page, "training");
    await page.keyboard.press("t");
    assert.equal(await ground(), light);
  },

  async "goes by keyboard alone"({ page }) {
    await page.evaluate(() => document.activeElement?.blur());
    await page.keyboard.press("?");
    await page.waitForSelector("#keys[open]");
    assert((await page.$$("#keys-list kbd")).length > 10);
    await page.keyboard.press("Escape");
    await page.waitForSelector("#keys", { state: "hidden" });
    await page.keyboard.press("4");
    await page.waitForSelector("#view-queue:not([hidden])");
    await page.waitForSelector("#settled .job, #settled tr");
    await page.evaluate(() => document.activeElement?.blur());
    const reached = new Set();
    for (let presses = 0; presses < 80; presses++) {
      await page.keyboard.press("Tab");
      const now = await page.evaluate(() => {
        const { activeElement: active } = document;
        if (active === document.body) return null;
        active.dataset.reached = "";
        return getComputedStyle(active).outlineStyle;
      });
      if (now === null) break;
      assert.notEqual(now, "none", "the focus is seen");
      reached.add(presses);
    }
    const missed = await page.$$eval("button, a[href], select, input", (all) => all
      .filter((one) => one.checkVisibility() && !one.disabled && !("reached" in one.dataset)).map((one) => one.outerHTML));
    assert.deepEqual(missed, []);
  },

  async "has a plan, memory and logs"({ page }) {
    await go(page, "plan");
    await page.waitForSelector("#plan-table td:has-text('balanced')");
    await until(page, () => document.querySelector("#plan-picture img")?.naturalWidth > 0);
    await go(page, "memory");
    await page.waitForSelector("#chart-memory canvas");
    await page.waitForSelector("#memory-table td:has-text('weights')");
    await go(page, "logs");
    await page.waitForSelector("#log-lines .INFO");
    await page.waitForSelector("#all-events li:has-text('bad.jsonl'), #all-events li.bad");
    await page.selectOption("#log-level", "error");
    await until(page, () => !document.querySelector("#log-lines .INFO"));
  },

  async "fits a phone"({ browser, daemon }) {
    const { page, seen, context } = await open(browser, daemon, { width: 360, height: 740 });
    for (const view of VIEWS) {
      await go(page, view);
      await page.waitForTimeout(300);
      const wide = await page.evaluate(() => document.documentElement.scrollWidth);
      assert(wide <= 360, `${view} is ${wide} wide`);
    }
    assert.deepEqual(seen.troubles, []);
    await context.close();
  },

  async "is accessible in every view, light and dark"({ browser, daemon }) {
    for (const theme of ["light", "dark"]) {
      const { page, context } = await open(browser, daemon, { theme });
      for (const view of VIEWS) {
        await go(page, view);
        await page.waitForTimeout(400);
        // In a way that the page's own policy leaves alone.
        const found = await page.evaluate(`${axe}; axe.run(document, { resultTypes: ["violations"] })`);
        const told = found.violations.map(({ id, nodes }) => `${view} ${theme}: ${id}: ${nodes[0].html} ${nodes[0].failureSummary}`);
        assert.deepEqual(told, []);
      }
      await context.close();
    }
  },

  async "is served a million steps at once"({ daemon }) {
    daemon.chandler("pause");
    const run = daemon.recordMillion();
    for (const query of ["", "?points=4000", "?from=500000", "?from=990000", "?from=985000&to=995000"]) {
      const begun = performance.now();
      const { step } = await daemon.ask(`runs/${run}/metrics${query}`);
      const took = performance.now() - begun;
      assert(step.length > 100 && took < 200, `${query}: ${step.length} points in ${took} ms`);
    }
  },

  async "leaves no error behind"({ seen }) {
    assert.deepEqual(seen.troubles, []);
  },
};

// Two lines that cannot be used, after one whose text tries to act.
const BAD = [
  JSON.stringify({ prompt: "Say \u001b[2J\u202e<img src=x>", completion: "zwei" }),
  "no JSON",
  JSON.stringify({ prompt: "a question" }),
].map((line) => `${line}\n`).join("");

async function main() {
  const begun = performance.now();
  const folder = process.argv[2] === "--screenshots" ? resolve(process.env.CALLED_FROM ?? ".", process.argv[3]) : null;
  const daemon = new Daemon(folder ? 192 : 64);
  let browser;
  let failures = 0;
  try {
    await daemon.start();
    daemon.add("bad.jsonl", BAD);
    for (let tries = 0; tries < 200 && (await daemon.ask("status")).counts.failed !== 1; tries++) await new Promise((then) => setTimeout(then, 50));
    for (const name of ["german-again.jsonl", "later.jsonl", "last.jsonl"]) daemon.add(name);
    browser = await launch();
    if (folder) {
      await takeScreenshots(browser, daemon, folder);
      return 0;
    }
    const { page, seen } = await open(browser, daemon);
    for (const [name, check] of Object.entries(checks)) {
      try {
        await check({ browser, daemon, page, seen });
        console.log(`ok ${name}`);
      } catch (error) {
        failures += 1;
        console.log(`FAILED ${name}\n   ${error.stack}`);
      }
    }
  } finally {
    await browser?.close();
    daemon.end();
  }
  console.log(`${Object.keys(checks).length - failures} of ${Object.keys(checks).length} in ${Math.round((performance.now() - begun) / 1000)} s`);
  return failures ? 1 : 0;
}

process.exitCode = await main();
