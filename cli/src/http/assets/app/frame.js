// Drawing, at most once a frame, and only what somebody sees.

const waiting = new Map();
let asked = false;

const isSeen = (host) => !document.hidden && host.getClientRects().length > 0;

// Has `host` drawn by `paint` in the next frame, or when it is next seen. The newest paint counts.
export function draw(host, paint) {
  waiting.set(host, paint);
  drawSoon();
}

// What is gone is not drawn any more.
export function drop(host) {
  waiting.delete(host);
}

// To be called when something came into view.
export function drawSoon() {
  if (asked || document.hidden) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    for (const [host, paint] of [...waiting]) {
      if (!isSeen(host)) continue;
      waiting.delete(host);
      paint();
    }
  });
}

document.addEventListener("visibilitychange", drawSoon);
