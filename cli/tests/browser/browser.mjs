// Chromium with a page of the daemon, which notes what is loaded and what goes wrong.

import { chromium } from "playwright-core";

export async function launch() {
  return chromium.launch({
    executablePath: process.env.CHANDLER_TEST_CHROMIUM,
    args: ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
  });
}

// A signed-in page. `troubles` collects errors of the console and of scripts, `requests` the paths
// that were asked for, `bytes` what came over the wire.
export async function open(browser, daemon, { width = 1280, height = 900, theme = "light", hash = "" } = {}) {
  const context = await browser.newContext({ viewport: { width, height }, colorScheme: theme });
  const page = await context.newPage();
  const received = new Map();
  const seen = { troubles: [], requests: [], bytes: () => [...received.values()].reduce((all, bytes) => all + bytes, 0) };
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) seen.troubles.push(message.text());
  });
  page.on("pageerror", (error) => seen.troubles.push(error.stack));
  page.on("request", (request) => seen.requests.push(request.url().replace(daemon.url, "")));
  const wire = await context.newCDPSession(page);
  await wire.send("Network.enable");
  // Headers and bodies; of what is still going on, such as the stream, what has come so far.
  const count = (id, bytes) => received.set(id, (received.get(id) ?? 0) + bytes);
  wire.on("Network.responseReceived", ({ requestId, response }) => count(requestId, response.encodedDataLength));
  wire.on("Network.dataReceived", ({ requestId, dataLength }) => count(requestId, dataLength));
  wire.on("Network.loadingFinished", ({ requestId, encodedDataLength }) => received.set(requestId, encodedDataLength));
  // Signs in without opening the page, which is then seen for the first time.
  await context.request.get(`${daemon.url}/?token=${daemon.token}`, { maxRedirects: 0 });
  await page.goto(`${daemon.url}/${hash}`);
  return { page, seen, context };
}

// Waits until `look` (run in the page) is true.
export const until = (page, look, argument) => page.waitForFunction(look, argument, { timeout: 15000 });
