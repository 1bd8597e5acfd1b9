// What happens, as the daemon tells it. Nothing here asks twice: a stream that breaks comes back with
// its place in the database and gets what was missed.

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

export function follow() {
  const stream = new EventSource("/api/stream");
  for (const kind of KINDS) {
    stream.addEventListener(kind, (event) => tell(kind, JSON.parse(event.data)));
  }
  stream.onopen = () => tell("connection", true);
  stream.onerror = () => {
    tell("connection", false);
    // A refusal, such as of a token that is another by now, ends the stream for good.
    if (stream.readyState === EventSource.CLOSED) setTimeout(follow, 5000);
  };
}
