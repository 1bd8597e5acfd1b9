// Pictures of the page for the book.

import { mkdirSync, statSync } from "node:fs";
import { join } from "node:path";

import { open } from "./browser.mjs";

const PICTURES = [
  { name: "dashboard-run", hash: "#/run", height: 1010 },
  { name: "dashboard-answers", hash: "#/evals", run: "1", scroll: "#answers" },
  { name: "dashboard-memory", hash: "#/memory", wait: 6000, theme: "dark" },
  { name: "dashboard-queue", hash: "#/queue", open: "#settled tr:has-text('bad.jsonl') a:has-text('report')", height: 640 },
  { name: "dashboard-data", hash: "#/data/1", height: 560 },
  { name: "dashboard-phone", hash: "#/run", width: 360, height: 740 },
];

export async function takeScreenshots(browser, daemon, folder) {
  mkdirSync(folder, { recursive: true });
  for (const { name, hash, width, height, theme, run, scroll, wait, open: opened } of PICTURES) {
    const { page, context } = await open(browser, daemon, { width, height, theme, hash });
    await page.waitForTimeout(1500);
    if (run) await page.selectOption("#run", run);
    if (opened) await page.click(opened);
    await page.waitForTimeout(wait ?? 1500);
    if (scroll) await page.$eval(scroll, (part) => part.scrollIntoView());
    await page.waitForTimeout(300);
    const path = join(folder, `${name}.png`);
    await page.screenshot({ path });
    console.log(`${path} ${statSync(path).size} bytes`);
    await context.close();
  }
}
