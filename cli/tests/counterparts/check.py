"""Has the programs whose formats they are read what chandler has exported.

    python check.py EXPORTS

EXPORTS holds what `cli/tests/suite/exports.rs` has written: metrics.csv, metrics.jsonl,
metrics.parquet, samples.*, scores.*, the event files of `live/` and `written/`, and GGUF files with the
weights they came from in `weights/`. Prints a line for each check; a package that is not installed
is told as `skipped`, unless CHANDLER_TEST_PYTHON is set, and a difference ends with an error.
"""

import csv
import importlib.util
import json
import math
import os
import pathlib
import sys


def has(*packages):
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        words = f"skipped: {', '.join(missing)} not installed"
        assert "CHANDLER_TEST_PYTHON" not in os.environ, words
        print(words)
    return not missing


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def same(a, b):
    if isinstance(a, float) or isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-12, abs_tol=0.0)
    return a == b


def check_csv(place):
    for name in ["metrics", "samples", "scores", "evals", "events", "layers"]:
        with open(place / f"{name}.csv", newline="", encoding="utf-8") as file:
            found = list(csv.DictReader(file))
        expected = rows(place / f"{name}.jsonl")
        assert len(found) == len(expected) > 0
        for row, wanted in zip(found, expected, strict=True):
            for key, value in wanted.items():
                cell = row[key]
                if value is None:
                    assert cell == "", (key, cell)
                elif isinstance(value, bool):
                    assert cell == str(value).lower()
                elif isinstance(value, str):
                    assert cell == value, (key, cell, value)
                else:
                    assert same(type(value)(cell), value), (key, cell, value)
        print(f"csv: {len(found)} rows of {name} as Python's csv reads them")


def check_parquet(place):
    if not has("pyarrow"):
        return
    import pyarrow.parquet as pq

    for name in ["metrics", "samples", "scores", "evals", "events", "layers"]:
        found = pq.read_table(place / f"{name}.parquet").to_pylist()
        expected = rows(place / f"{name}.jsonl")
        assert len(found) == len(expected) > 0
        for row, wanted in zip(found, expected, strict=True):
            assert row.keys() == wanted.keys()
            assert all(same(row[key], wanted[key]) for key in wanted), (row, wanted)
        print(f"parquet: {len(found)} rows of {name} as pyarrow reads them")


def check_tensorboard(place):
    if not has("tensorboard"):
        return
    import numpy as np
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    steps = rows(place / "metrics.jsonl")
    tags = {
        "train/loss": "loss",
        "train/learning_rate": "lr",
        "train/grad_norm": "grad_norm",
        "train/tokens_per_s": "tokens_per_s",
        "train/num_tokens": "num_tokens",
        "train/mean_token_accuracy": "mean_token_accuracy",
        "memory/peak": "peak_bytes",
        "memory/weights": "memory_weights_bytes",
    }
    for kind in ["live", "written"]:
        (folder,) = (place / kind).glob("run-*")
        events = EventAccumulator(str(folder), size_guidance={"tensors": 0, "scalars": 0})
        events.Reload()
        for tag, key in tags.items():
            known = [row for row in steps if row[key] is not None]
            found = events.Scalars(tag)
            assert [event.step for event in found] == [row["step"] for row in known], tag
            for event, row in zip(found, known, strict=True):
                assert event.value == float(np.float32(row[key])), (tag, event, row)
        evals = rows(place / "evals.jsonl")
        assert [event.step for event in events.Scalars("eval/loss")] == [row["step"] for row in evals]
        scores = [row for row in rows(place / "scores.jsonl") if row["metric"] == "numeric"]
        found = events.Scalars("eval/sums/numeric")
        assert [event.step for event in found] == [row["step"] for row in scores]
        assert [event.value for event in found] == [float(np.float32(row["value"])) for row in scores]
        for name, attempt in [("held-out", 0), ("sums", 1)]:
            wanted = (name, 0, attempt)
            samples = [
                row
                for row in rows(place / "samples.jsonl")
                if (row["set"], row["position"], row["attempt"]) == wanted
            ]
            tag = f"samples/{name}/0/{attempt}"
            texts = [event.tensor_proto.string_val[0].decode() for event in events.Tensors(tag)]
            assert len(texts) == len(samples) > 0
            for text, sample in zip(texts, samples, strict=True):
                assert all(f"    {line}\n" in text for line in sample["text"].splitlines()), text
            plugin = events.SummaryMetadata(tag).plugin_data.plugin_name
            assert plugin == "text", plugin
        print(f"tensorboard: {len(steps)} steps, {len(evals)} evaluations, {len(texts)} texts ({kind})")


def check_gguf(place):
    if not has("gguf", "safetensors"):
        return
    import numpy as np
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from safetensors.numpy import load_file

    weights = load_file(place / "weights/model.safetensors")
    bounds = {"f32": 0.0, "f16": 2**-11, "bf16": 2**-8, "q8_0": 0.51 / 127}
    for kind, bound in bounds.items():
        reader = GGUFReader(place / f"model-{kind}.gguf")
        fields = {name: field.contents() for name, field in reader.fields.items()}
        assert fields["general.architecture"] == "qwen3"
        assert fields["qwen3.block_count"] == 2 and fields["qwen3.attention.key_length"] == 32
        assert len(fields["tokenizer.ggml.tokens"]) == len(fields["tokenizer.ggml.token_type"]) == 2048
        assert fields["tokenizer.ggml.model"] == "gpt2" and fields["tokenizer.ggml.pre"] == "qwen2"
        assert "im_start" in fields["tokenizer.chat_template"]
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        assert "output.weight" not in tensors and len(tensors) == len(weights)
        for ours, theirs in [
            ("model.embed_tokens.weight", "token_embd.weight"),
            ("model.layers.1.self_attn.q_proj.weight", "blk.1.attn_q.weight"),
            ("model.layers.0.self_attn.k_norm.weight", "blk.0.attn_k_norm.weight"),
            ("model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight"),
            ("model.norm.weight", "output_norm.weight"),
        ]:
            tensor = tensors[theirs]
            found = dequantize(tensor.data, tensor.tensor_type).reshape(weights[ours].shape)
            off = np.abs(found - weights[ours]).max() / np.abs(weights[ours]).max()
            assert off <= bound, (kind, theirs, off)
        print(f"gguf: {len(tensors)} tensors and {len(fields)} fields of {kind} as gguf reads them")


if __name__ == "__main__":
    where = pathlib.Path(sys.argv[1])
    check_csv(where)
    check_parquet(where)
    check_tensorboard(where)
    check_gguf(where)
