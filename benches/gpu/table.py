#!/usr/bin/env python3
"""The table of `compare.sh`: medians over its rounds, and chandler beside the best of the peer."""

import json
import statistics
import sys


def gib(value):
    return "unknown" if value is None else f"{value / 2**30:.2f} GiB"


def median(results, *keys):
    for key in keys:
        values = [result[key] for result in results if result.get(key) is not None]
        if values:
            return statistics.median(values)
    return None


def main():
    rounds = [json.loads(line) for line in open(sys.argv[1])]
    works = {}
    for line in rounds:
        sides = works.setdefault(line["work"], {})
        sides.setdefault(line["side"], []).append(line["result"])
    if not works:
        sys.exit("nothing was measured")
    print("| work | side | tokens/s | of the peer's best | peak memory | model FLOP utilisation | first step |")
    print("|---|---|---|---|---|---|---|")
    for work, sides in works.items():
        speed = {side: median(results, "tokens_per_s_median") for side, results in sides.items()}
        peer = [value for side, value in speed.items() if side.startswith("PyTorch")]
        for side, results in sides.items():
            ratio = f"{speed[side] / max(peer):.2f}" if peer else "unknown"
            memory = median(results, "measured_peak_bytes", "peak_allocated_bytes")
            used = median(results, "model_flops_utilisation")
            first = median(results, "seconds_to_first_step")
            used = "unknown" if used is None else f"{100 * used:.1f} %"
            first = "unknown" if first is None else f"{first:.1f} s"
            print(f"| {work} | {side} | {speed[side]:.0f} | {ratio} | {gib(memory)} | {used} | {first} |")


if __name__ == "__main__":
    main()
