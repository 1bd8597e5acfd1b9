// A state directory as `chandler quickstart` leaves it, and a daemon that goes on in it.

import { execFileSync, spawn } from "node:child_process";
import { copyFileSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";

const binary = process.env.CHANDLER_TEST_BINARY;
const environment = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("CHANDLER_")));
const set = (settings) => Object.entries(settings).flatMap(([key, value]) => ["--set", `${key}=${value}`]);

const SHARED = { "http.port": 0, "daemon.min_free_gib": 0.1, "eval.samples": 16 };

export class Daemon {
  // Learns for `steps` steps with three evaluations, which makes run 1.
  constructor(steps) {
    this.folder = mkdtempSync(join(tmpdir(), "chandler-browser-"));
    this.state = join(this.folder, "state");
    this.chandler("quickstart", set({ ...SHARED, "train.max_steps": steps, "eval.eval_steps": steps / 2 }));
    const [learned] = readdirSync(join(this.state, "done"));
    this.learned = join(this.state, "done", learned);
    // Comes after the first job, so it is put to the base model before the next one.
    writeFileSync(join(this.state, "evals", "later.jsonl"), '{"prompt": "nine blue owls", "completion": " sing"}\n');
  }

  chandler(command, more = []) {
    return execFileSync(binary, [command, "--dir", this.state, ...more], { env: environment, stdio: ["ignore", "pipe", "pipe"] }).toString();
  }

  // Starts the daemon, on runs that are longer than anybody looks on.
  async start() {
    const settings = set({ ...SHARED, "train.max_steps": 100000, "eval.eval_steps": 500,
      "train.layer_norms_steps": 5, "daemon.restart": false });
    this.process = spawn(binary, ["run", "--dir", this.state, ...settings], { env: environment, stdio: "ignore" });
    for (let tries = 0; tries < 300; tries++) {
      await sleep(50);
      try {
        const { daemon } = JSON.parse(this.chandler("status", ["--json"]));
        if (daemon?.http) {
          this.url = daemon.http;
          this.token = readFileSync(join(this.state, "token"), "utf8").trim();
          return;
        }
      } catch {
        // It is not there yet.
      }
    }
    throw new Error("the daemon did not come up");
  }

  add(name, lines, priority = "normal") {
    const file = join(this.folder, name);
    if (lines) writeFileSync(file, lines);
    else copyFileSync(this.learned, file);
    this.chandler("add", ["--priority", priority, file]);
  }

  async ask(path) {
    const response = await fetch(`${this.url}/api/${path}`, { headers: { Authorization: `Bearer ${this.token}` } });
    return response.json();
  }

  // Records an event as the daemon does, which shows it to whoever looks on.
  record(kind, message, details) {
    const insert = `import sqlite3, sys
with sqlite3.connect(sys.argv[1], timeout=10) as db:
    db.execute("INSERT INTO events (at, kind, message, details) VALUES (?, ?, ?, ?)", sys.argv[2:])`;
    const values = [new Date().toISOString(), kind, message, JSON.stringify(details)];
    execFileSync("python3", ["-c", insert, join(this.state, "chandler.db"), ...values]);
  }

  // A run of a million steps, which is over.
  recordMillion() {
    const insert = `import sqlite3, sys
with sqlite3.connect(sys.argv[1], timeout=10) as db:
    run = db.execute("INSERT INTO runs (attempt, state, started_at, config) VALUES (1, 'done', ?, '{}')", sys.argv[2:]).lastrowid
    db.execute("""INSERT INTO metrics (run_id, step, loss, grad_norm, lr, num_tokens, mean_token_accuracy,
            tokens_per_s, peak_bytes, memory)
        WITH RECURSIVE steps (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM steps WHERE n < 1000000)
        SELECT ?, n, 1.0 / n, 1.0, 0.1, n * 4096, 0.5, 5.0, n, '{"weights":4096}' FROM steps""", [run])
    print(run)`;
    return Number(execFileSync("python3", ["-c", insert, join(this.state, "chandler.db"), new Date().toISOString()]).toString());
  }

  end() {
    this.process?.kill("SIGKILL");
    rmSync(this.folder, { recursive: true, force: true });
  }
}
