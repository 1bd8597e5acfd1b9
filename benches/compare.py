#!/usr/bin/env python3
"""chandler and PyTorch (transformers, TRL, peft) at the same work, in turn, on this CPU.

  benches/compare.py --only small-512-bf16,generate-small --rounds 3

Each round runs chandler and then every variant of the peer, each in a process of its own, so that
a machine that slows down slows all of them. Prints the medians over the rounds and what chandler
is as a multiple of the peer, and writes them as a table of this machine into docs/src/benchmarks.md.

The peer's Python is --python, else $CHANDLER_PEER_PYTHON, else a virtual environment that is made
below target/ from benches/requirements.txt. chandler is --chandler, else built in release.
"""

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import re
import shlex
import statistics
import subprocess
import sys
import tempfile
import time

BENCHES = pathlib.Path(__file__).resolve().parent
ROOT = BENCHES.parent
PAGE = ROOT / "docs" / "src" / "benchmarks.md"
CHAT = ROOT / "fixtures" / "goldens" / "data" / "chat.jsonl"
BEGIN, END = "<!-- compare.py: begin -->", "<!-- compare.py: end -->"


@dataclasses.dataclass
class Work:
    """What both sides do."""

    name: str
    chandler: str
    """Arguments of `chandler bench`."""
    peers: dict
    """Arguments of peer_bench.py by the name of the variant."""
    what: str = ""
    runs: int = 1
    """Processes in a row, of which the last is measured."""

    @property
    def is_cold(self):
        return self.chandler == "cold"


def train(name, what, shape, seq_len, batch_size, dtype, peer_dtypes, extra="", peer_extra=""):
    size = f"--shape {shape} --seq-len {seq_len} --batch-size {batch_size}"
    peers = {d: f"train {size} --dtype {d} {peer_extra}".strip() for d in peer_dtypes}
    return Work(name, f"train {size} --dtype {dtype} {extra}".strip(), peers, what)


def generate(name, what, shape, batch_size):
    size = f"--shape {shape} --batch-size {batch_size} --prompt-len 32 --max-new-tokens 128"
    return Work(
        name, f"generate {size} --dtype bf16", {d: f"generate {size} --dtype {d}" for d in ("bf16", "f32")}, what
    )


NARROW = ("bf16", "autocast", "f32")
COLD_LOOPS = {loop: f"cold --loop {loop}" for loop in ("sft", "trainer", "raw")}
WORKS = [
    train("small-512-bf16", "full, bf16, 4 x 512", "small", 512, 4, "bf16", NARROW),
    train("small-2048-bf16", "full, bf16, 4 x 2048", "small", 2048, 4, "bf16", NARROW),
    train("small-512-f32", "full, f32, 4 x 512", "small", 512, 4, "f32", ("f32",)),
    train("qwen3-512-bf16", "Qwen3-0.6B, full, bf16, 1 x 512", "qwen3-0.6b", 512, 1, "bf16", NARROW),
    train(
        "qwen3-512-pure", "Qwen3-0.6B, full, bf16 without master weights, moments in 8 bits, 1 x 512", "qwen3-0.6b", 512, 1, "bf16",
        ("bf16",), "--no-master-weights --moments blockwise8",
    ),
    train(
        "qwen3-512-back", "the same, optimizer in backward", "qwen3-0.6b", 512, 1, "bf16", ("bf16",),
        "--no-master-weights --moments blockwise8 --optimizer-in-backward",
    ),
    train(
        "qwen3-1024-lora", "Qwen3-0.6B, LoRA r 8, bf16, 1 x 1024", "qwen3-0.6b", 1024, 1, "bf16",
        NARROW, "--mode lora", "--lora",
    ),
    generate("generate-qwen3", "Qwen3-0.6B, bf16, 1 x 128 new tokens", "qwen3-0.6b", 1),
    generate("generate-small", "small, bf16, 8 x 128 new tokens", "small", 8),
    Work("cold-start", "cold", COLD_LOOPS, "small, f32: process start to first step done"),
    Work("cold-start-again", "cold", COLD_LOOPS, "the same, right after a process like it", runs=2),
]


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names, with commas between them; a beginning is enough")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="measured steps a process")
    parser.add_argument("--python", default=os.environ.get("CHANDLER_PEER_PYTHON", ""))
    parser.add_argument("--chandler", default="", help="the binary")
    parser.add_argument("--chandler-args", default="", help="more arguments of chandler bench")
    parser.add_argument("--peer-args", default="", help="more arguments of peer_bench.py train")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--no-write", action="store_true", help="leave the page alone")
    parser.add_argument("--list", action="store_true")
    return parser.parse_args()


def run(command, **environment):
    """Output of a command that must succeed. OPENBLAS_CORETYPE would choose kernels for NumPy."""
    env = {k: v for k, v in os.environ.items() if k != "OPENBLAS_CORETYPE" and not k.startswith("CHANDLER_")}
    done = subprocess.run(command, env=env | environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{shlex.join(map(str, command))}\nended with {done.returncode}\n{done.stderr[-3000:]}")
    return done.stdout


def peer_python(given):
    if given:
        return given
    folder = ROOT / "target" / "peer-venv"
    python = folder / "bin" / "python"
    if not python.exists():
        run([sys.executable, "-m", "venv", folder])
        run([python, "-m", "pip", "install", "--quiet", "-r", BENCHES / "requirements.txt"])
    return str(python)


def chandler_binary(given):
    if given:
        return given
    run(["cargo", "build", "--release", "--manifest-path", ROOT / "Cargo.toml", "--package", "chandler-cli"])
    return str(pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "release" / "chandler")


class Sides:
    """How each side is run."""

    def __init__(self, args):
        self.args = args
        self.binary = chandler_binary(args.chandler)
        self.python = None if args.no_peer else peer_python(args.python)
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="compare-"))

    def chandler(self, work):
        if work.is_cold:
            return self.cold_chandler()
        command = [self.binary, "bench", *work.chandler.split(), "--steps", str(self.args.steps), "--json"]
        command += shlex.split(self.args.chandler_args)
        return json.loads(run(command).splitlines()[-1])

    def peer(self, work, arguments):
        command = [self.python, str(BENCHES / "peer_bench.py"), *arguments.split(), "--steps", str(self.args.steps)]
        if arguments.startswith("train"):
            command += shlex.split(self.args.peer_args)
        if work.is_cold:
            command += ["--dir", str(self.model_folder()), "--started", repr(time.time())]
        return json.loads(run(command).split("RESULT ")[-1])

    def model_folder(self):
        folder = self.folder / "model"
        if not folder.exists():
            python = self.python or peer_python(self.args.python)
            run([python, BENCHES / "peer_bench.py", "model-folder", "--shape", "small", "--dir", folder])
        return folder

    def cold_chandler(self):
        """Until the metrics of the first step stand in their file."""
        folder = pathlib.Path(tempfile.mkdtemp(dir=self.folder))
        metrics = folder / "metrics.jsonl"
        command = [
            self.binary, "train", "--model", self.model_folder(), "--data", CHAT, "--output", folder / "out",
            "--metrics", metrics,
        ]
        for setting in (
            "train.max_steps=1", "train.per_device_train_batch_size=1", "data.max_length=256", "eval.eval_steps=0",
        ):
            command += ["--set", setting]
        begun = time.time()
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while child.poll() is None and not (metrics.exists() and metrics.stat().st_size > 0):
            time.sleep(0.001)
        seconds = time.time() - begun
        # The step before the model is written is what was asked for: its peak stands in the metrics.
        errors = child.communicate()[1]
        if child.returncode != 0:
            sys.exit(f"{shlex.join(map(str, command))}\nended with {child.returncode}\n{errors[-3000:]}")
        step = json.loads(metrics.read_text().splitlines()[0])
        return {"seconds_to_first_step": seconds, "peak_rss_bytes": step["peak_bytes"]}


@dataclasses.dataclass
class Line:
    """One side's medians over the rounds."""

    side: str
    results: list

    def median(self, key):
        return statistics.median(result[key] for result in self.results)


def measure(work, sides):
    lines = [Line("chandler", [])]
    if sides.python:
        lines += [Line(variant, []) for variant in work.peers]
    for number in range(sides.args.rounds):
        for line in lines:
            chandler = line.side == "chandler"
            for _ in range(work.runs):
                result = sides.chandler(work) if chandler else sides.peer(work, work.peers[line.side])
            line.results.append(result)
            shown = {key: result.get(key) for key in (KEY[work.is_cold], "peak_rss_bytes")}
            print(f"{work.name} round {number + 1} {line.side}: {shown}", file=sys.stderr, flush=True)
    return lines


KEY = {False: "tokens_per_s_median", True: "seconds_to_first_step"}
HEAD = ["work", "side", "speed", "chandler is", "peak RSS", "chandler uses", "date"]


def rows(work, lines):
    """Rows of the table, chandler first. Speed is tokens/s, or seconds of a cold start."""
    key, mib = KEY[work.is_cold], 1 << 20
    speed = lambda line: line.median(key)
    memory = lambda line: line.median("peak_rss_bytes")
    ours, today = lines[0], datetime.date.today().isoformat()
    unit = "s" if work.is_cold else "tokens/s"
    table = []
    for line in lines:
        faster = speed(line) / speed(ours) if work.is_cold else speed(ours) / speed(line)
        is_peer = line is not ours
        table.append([
            f"{work.name}: {work.what}", f"PyTorch {line.side}" if is_peer else "chandler",
            f"{speed(line):.{2 if work.is_cold or speed(line) < 100 else 0}f} {unit}",
            f"{faster:.2f} x as fast" if is_peer else "",
            f"{memory(line) / mib:.0f} MiB", f"{memory(ours) / memory(line):.2f} x" if is_peer else "", today,
        ])
    return table


# "model name" begins with the same letters.
MODEL_NUMBER = "model\t"


def cpu_model():
    lines = open("/proc/cpuinfo").read().splitlines()
    found = lambda key: next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "unknown")
    features = [f for f in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f in found("flags").split()]
    family = f"family {found('cpu family')}, model {found(MODEL_NUMBER)}"
    return f"{found('model name')} ({family}; {', '.join(features)}), {len(os.sched_getaffinity(0))} threads"


def versions(sides):
    ours = run([sides.binary, "--version"]).strip()
    if not sides.python:
        return ours
    names = [line.split("==")[0] for line in (BENCHES / "requirements.txt").read_text().split()]
    code = f"from importlib.metadata import version as v; print(', '.join(n + ' ' + v(n) for n in {names!r}))"
    return f"{ours}; {run([sides.python, '-c', code]).strip()}"


def markdown(table):
    line = lambda cells: "| " + " | ".join(cells) + " |"
    return "\n".join([line(HEAD), "|" + "---|" * len(HEAD), *map(line, table)])


def kept_rows(section, measured):
    """Rows of a section's table that are of other works than those that were measured."""
    names = {work.name for work in WORKS} - set(measured)
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    split = [[cell.strip() for cell in line.strip()[1:-1].split("|")] for line in lines]
    return [row for row in split if row[0].split(":")[0] in names]


MADE_BY = re.compile(r"(?P<command>`benches/compare.py[^`]*`) measured (?P<works>[^:]*): (?P<versions>.*)")


def kept_commands(section, measured):
    """The lines that say which command made which works, but for those that were measured anew."""
    kept = []
    for line in map(MADE_BY.fullmatch, section.splitlines()):
        works = [name for name in line["works"].split(", ") if name not in measured] if line else []
        if works:
            kept.append(f"{line['command']} measured {', '.join(works)}: {line['versions']}")
    return kept


def sections(text):
    """What the page says of each machine, by the machine, in the page's order."""
    within = text.split(BEGIN)[1].split(END)[0]
    parts = [part.strip() for part in within.split("### ") if part.strip()]
    return {part.splitlines()[0]: part for part in parts}


def write_page(table, measured, sides):
    text = PAGE.read_text()
    if BEGIN not in text or END not in text:
        sys.exit(f"{PAGE} lacks the lines {BEGIN} and {END}")
    machine, found = cpu_model(), sections(text)
    everything = kept_rows(found.get(machine, ""), measured) + table
    order = {work.name: place for place, work in enumerate(WORKS)}
    everything.sort(key=lambda row: order[row[0].split(":")[0]])
    only = ["--only", sides.args.only] if sides.args.only else []
    rounds = ["--rounds", str(sides.args.rounds), "--steps", str(sides.args.steps)]
    command = shlex.join(["benches/compare.py", *rounds, *only])
    commands = kept_commands(found.get(machine, ""), measured)
    commands.append(f"`{command}` measured {', '.join(measured)}: {versions(sides)}.")
    found[machine] = "\n\n".join([machine, *commands, markdown(everything)])
    block = "\n\n".join(f"### {section}" for section in found.values())
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{block}\n{END}{after}")


def main():
    args = arguments()
    wanted = [name for name in args.only.split(",") if name]
    works = [work for work in WORKS if not wanted or any(work.name.startswith(name) for name in wanted)]
    if args.list or not works:
        for work in WORKS:
            print(f"{work.name:<18} {work.what}")
        return 0 if args.list else 2
    sides = Sides(args)
    table = []
    for work in works:
        table += rows(work, measure(work, sides))
        print(markdown(table), flush=True)
    if not args.no_write:
        write_page(table, [work.name for work in works], sides)
    return 0


if __name__ == "__main__":
    sys.exit(main())
