#!/usr/bin/env python3
"""PyTorch with transformers, TRL and peft at the same work as `chandler bench`, on the CPU.

One measurement a process, so that peak memory is that measurement's; the last line is
`RESULT {json}`.

  peer_bench.py train --shape small --seq-len 512 --batch-size 4 --dtype bf16 [--lora] [--gc]
                      [--loop raw|trainer|sft] [--loss hf|trl] [--compile] [--steps 3]
  peer_bench.py generate --shape qwen3-0.6b --dtype bf16 --prompt-len 32 --max-new-tokens 128
  peer_bench.py products
  peer_bench.py model-folder --shape small --dtype f32 --dir DIR
  peer_bench.py cold --dir DIR --loop sft|trainer|raw --started $(date +%s.%N)

dtype: f32: everything in f32. bf16: weights, gradients and Adam's moments in bf16. autocast: f32
master weights under torch.autocast(bf16), as `bf16=True` of transformers and TRL does it.
"""

import time

STARTED = time.time()

import argparse
import contextlib
import json
import os
import pathlib
import resource
import statistics
import sys
import tempfile

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "goldens"
TOKENIZER = FIXTURES / "models" / "qwen3"
CHAT = FIXTURES / "data" / "chat.jsonl"

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

SHAPES = {
    "small": dict(
        hidden_size=512, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=4,
        head_dim=64, intermediate_size=1536, vocab_size=32768,
    ),
    "qwen3-0.6b": dict(
        hidden_size=1024, num_hidden_layers=28, num_attention_heads=16, num_key_value_heads=8,
        head_dim=128, intermediate_size=3072, vocab_size=151936,
    ),
}
PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
BATCHES = 8


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--dtype", choices=["f32", "bf16", "autocast"], default="f32")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--loop", choices=["raw", "trainer", "sft"], default="raw")
    parser.add_argument("--loss", choices=["hf", "trl"], default="hf")
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--gc", action="store_true", help="gradient checkpointing")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--prompt-len", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--dir", default="")
    parser.add_argument("--started", type=float, default=0.0, help="when the process was started")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    return parser.parse_args()


def peak_rss_bytes():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024


def cpu_seconds():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def emit(**result):
    print("RESULT " + json.dumps(result), flush=True)


def rates(tokens, seconds):
    return dict(
        tokens_per_s_median=tokens / statistics.median(seconds),
        tokens_per_s_best=tokens / min(seconds),
        seconds=seconds,
        peak_rss_bytes=peak_rss_bytes(),
        load=os.getloadavg()[0],
    )


def build(a, dtype):
    """A Qwen 3 of the shape, fresh weights, scaled-dot-product attention."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        **SHAPES[a.shape], tie_word_embeddings=True, max_position_embeddings=4096, rope_theta=1e6,
        rms_norm_eps=1e-6, use_cache=False, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return Qwen3ForCausalLM(config)
    finally:
        torch.set_default_dtype(before)


def token_ids(a, vocab_size):
    """Batches of ids out of an alphabet of 256: `[8, B, T]`."""
    import torch

    generator = torch.Generator().manual_seed(1)
    alphabet = torch.randint(0, vocab_size, (256,), generator=generator)
    return alphabet[torch.randint(0, 256, (BATCHES, a.batch_size, a.seq_len), generator=generator)]


def with_adapter(model):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=8, lora_alpha=16, lora_dropout=0.0, task_type="CAUSAL_LM", target_modules=PROJECTIONS
    )
    return get_peft_model(model, config)


def train(a):
    import torch

    narrow = a.dtype == "bf16" or (a.lora and a.dtype == "autocast")
    model = build(a, torch.bfloat16 if narrow else torch.float32)
    ids = token_ids(a, model.config.vocab_size)
    seconds, losses = (train_raw if a.loop == "raw" else train_by_library)(a, model, ids)
    emit(**vars(a), **rates(a.seq_len * a.batch_size, seconds), losses=losses)


def train_raw(a, model, ids):
    """A loop of one's own, which has the least around it."""
    import torch

    if a.loss == "trl":
        from trl.trainer.utils import add_fused_lm_head

        add_fused_lm_head(model, outputs=("log_probs",))
    if a.lora:
        model = with_adapter(model)
    if a.gc:
        if a.lora:
            model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=1e-4, weight_decay=0.01, fused=True)
    forward = torch.compile(model) if a.compile else model
    precision = contextlib.nullcontext
    if a.dtype == "autocast":
        precision = lambda: torch.autocast("cpu", torch.bfloat16)
    extra = {"fused_lm_head": True} if a.loss == "trl" else {}
    warm_up = 2 if a.compile else 1
    seconds, losses = [], []
    for step in range(a.steps + warm_up):
        begun = time.perf_counter()
        batch = ids[step % BATCHES]
        with precision():
            loss = forward(input_ids=batch, labels=batch, use_cache=False, **extra).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - begun)
        losses.append(loss.item())
    return seconds[warm_up:], losses


def train_by_library(a, model, ids):
    """transformers' Trainer, or TRL's SFTTrainer."""
    from datasets import Dataset
    from transformers import AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

    ends, losses = [], []

    class Watch(TrainerCallback):
        def on_step_end(self, *_, **__):
            ends.append(time.perf_counter())

        def on_log(self, args, state, control, logs=None, **_):
            if "loss" in logs:
                losses.append(logs["loss"])

    rows = ids.reshape(-1, a.seq_len).tolist()
    rows = [rows[i % len(rows)] for i in range((a.steps + 1) * a.batch_size)]
    dataset = Dataset.from_dict({"input_ids": rows, "labels": rows})
    settings = dict(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=a.batch_size,
        max_steps=a.steps + 1, learning_rate=1e-4, weight_decay=0.01,
        lr_scheduler_type="constant", logging_steps=1, report_to=[], save_strategy="no",
        use_cpu=True, disable_tqdm=True, gradient_checkpointing=a.gc,
        bf16=a.dtype == "autocast", dataloader_num_workers=0,
    )
    if a.lora:
        model = with_adapter(model)
    common = dict(model=model, train_dataset=dataset, callbacks=[Watch()])
    if a.loop == "trainer":
        trainer = Trainer(args=TrainingArguments(**settings), **common)
    else:
        from trl import SFTConfig, SFTTrainer

        tokenizer = AutoTokenizer.from_pretrained(str(TOKENIZER))
        args = SFTConfig(**settings, max_length=None)
        trainer = SFTTrainer(args=args, processing_class=tokenizer, **common)
    trainer.train()
    return [after - before for before, after in zip(ends, ends[1:])], losses


def generate(a):
    import torch

    model = build(a, torch.bfloat16 if a.dtype == "bf16" else torch.float32).eval()
    model.config.use_cache = True
    generator = torch.Generator().manual_seed(5)
    shape = (a.batch_size, a.prompt_len)
    ids = torch.randint(3, model.config.vocab_size, shape, generator=generator)
    common = dict(
        attention_mask=torch.ones_like(ids), do_sample=False, eos_token_id=None, pad_token_id=2,
        use_cache=True,
    )
    seconds, new = [], a.max_new_tokens
    with torch.no_grad():
        model.generate(ids, max_new_tokens=4, **common)
        for _ in range(a.steps):
            begun = time.perf_counter()
            answer = model.generate(ids, max_new_tokens=new, min_new_tokens=new, **common)
            seconds.append(time.perf_counter() - begun)
            assert answer.shape[1] == a.prompt_len + new
    emit(**vars(a), **rates(a.batch_size * new, seconds))


def products(a):
    """GFLOP/s of `x·Wᵀ`, and the speed of a copy."""
    import torch

    sizes = [(512, 1024, 3072), (2048, 2048, 2048), (512, 1024, 151936), (2048, 512, 32768)]
    best = {}
    for n, i, o in sizes:
        for dtype in (torch.float32, torch.bfloat16):
            x, weight = torch.randn(n, i).to(dtype), torch.randn(o, i).to(dtype)
            flops = 2 * n * i * o
            runs = max(1, int(2e10 / flops))
            seconds = []
            for _ in range(6):
                begun = time.perf_counter()
                for _ in range(runs):
                    torch.nn.functional.linear(x, weight)
                seconds.append((time.perf_counter() - begun) / runs)
            best[f"{n} x {i} x {o} {str(dtype)[6:]}"] = flops / min(seconds[1:]) / 1e9
    source = torch.randn(64 * 1024 * 1024)
    target, seconds = torch.empty_like(source), []
    for _ in range(5):
        begun = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - begun)
    emit(command="products", gflops=best, copy_gb_per_s=8 * source.numel() / min(seconds) / 1e9)


def model_folder(a):
    """A folder that both sides can train, for the cold start."""
    import torch
    from transformers import AutoTokenizer

    build(a, torch.float32 if a.dtype == "f32" else torch.bfloat16).save_pretrained(a.dir)
    AutoTokenizer.from_pretrained(str(TOKENIZER)).save_pretrained(a.dir)
    emit(command="model-folder", dir=a.dir)


def cold(a):
    """From the start of the process until the first step on chat records is done."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if a.loop == "raw":
        model = AutoModelForCausalLM.from_pretrained(a.dir, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(a.dir)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        record = json.loads(open(CHAT).readline())
        messages = record["prompt"] + record["completion"]
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        model.train()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        done = time.time()
    else:
        done = cold_by_library(a, AutoModelForCausalLM, AutoTokenizer, torch)
    emit(**vars(a), seconds_to_first_step=done - (a.started or STARTED), peak_rss_bytes=peak_rss_bytes())


def cold_by_library(a, models, tokenizers, torch):
    from datasets import Dataset
    from transformers import TrainerCallback

    ends = []

    class Watch(TrainerCallback):
        def on_step_end(self, *_, **__):
            ends.append(time.time())

    model = models.from_pretrained(a.dir, dtype=torch.float32)
    tokenizer = tokenizers.from_pretrained(a.dir)
    settings = dict(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=1, max_steps=1, report_to=[],
        save_strategy="no", use_cpu=True, disable_tqdm=True, bf16=False,
        gradient_checkpointing=False,
    )
    records = [json.loads(line) for line in open(CHAT)]
    if a.loop == "sft":
        from trl import SFTConfig, SFTTrainer

        trainer = SFTTrainer(
            model=model, args=SFTConfig(**settings, max_length=256),
            train_dataset=Dataset.from_list(records), processing_class=tokenizer,
            callbacks=[Watch()],
        )
    else:
        from transformers import Trainer, TrainingArguments

        messages = [record["prompt"] + record["completion"] for record in records]
        texts = [tokenizer.apply_chat_template(m, tokenize=False) for m in messages]
        ids = [tokenizer(text)["input_ids"] for text in texts]
        dataset = Dataset.from_dict({"input_ids": ids, "labels": ids})
        trainer = Trainer(
            model=model, args=TrainingArguments(**settings), train_dataset=dataset,
            callbacks=[Watch()],
        )
    trainer.train()
    return ends[0]


COMMANDS = {
    "train": train,
    "generate": generate,
    "products": products,
    "model-folder": model_folder,
    "cold": cold,
}


def main():
    a = arguments()
    import torch

    torch.set_num_threads(a.threads)
    COMMANDS[a.command](a)
    return 0


if __name__ == "__main__":
    sys.exit(main())
