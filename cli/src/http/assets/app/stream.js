// What happens, as the daemon tells it. Nothing here asks twice: a stream that breaks comes back with
// its place in the database and gets what was missed. A browser has six connections to a server, for
// all its tabs: one that is hidden for long gives its own back.

const listeners = new Map();

// Has `then` called with the data of each message of a kind; `connection` says whether there is one.
export function on(kind, then) {
  if (!listeners.has(kind)) listeners.set(kind, []);
  listeners.get(kind).push(then);
}

export function tell(kind, data) {
  for (const then of listeners.get(kind) ?? []) then(data);
}

const KINDS = ["hello", "run", "step", "eval", "event", "gap", "queue", "progress", "memory", "log"];

const HIDDEN_MS = 30000;

let stream = null;
let again = null;
let leaving = null;

function close() {
  stream?.close();
  stream = null;
  clearTimeout(again);
}

function open() {
  close();
  stream = new EventSource("/api/stream");
  for (const kind of KINDS) {
    stream.addEventListener(kind, (event) => tell(kind, JSON.parse(event.data)));
  }
  stream.onopen = () => tell("connection", true);
  stream.onerror = () => {
    tell("connection", false);
    // A refusal, such as of a cookie that was made for another life of the daemon, is for good.
    if (stream?.readyState !== EventSource.CLOSED) return;
    tell("refused");
    again = setTimeout(open, 5000);
  };
}

export function follow() {
  const look = () => {
    clearTimeout(leaving);
    if (document.hidden) leaving = setTimeout(close, HIDDEN_MS);
    else if (!stream) open();
  };
  open();
  // A tab that is opened in the background is told of no change.
  look();
  document.addEventListener("visibilitychange", look);
}
