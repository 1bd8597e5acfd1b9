#!/usr/bin/env python3
"""PyTorch with transformers at the same work as `chandler-cuda bench`, on a GPU.

One measurement a process, so that peak memory is that measurement's; the last line is
`RESULT {json}`.

  peer.py train --seq-len 4096 --batch-size 16 --dtype bf16|autocast [--gc] [--compile] [--liger]
                [--lora] [--steps 10]
  peer.py generate --batch-size 1 --prompt-len 32 --max-new-tokens 2048

dtype: bf16: weights, gradients and Adam's moments in bf16. autocast: f32 master weights under
torch.autocast(bf16), as `bf16=True` of transformers and TRL does it.
"""

import time

STARTED = time.time()

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import sys

# Before the script for the CPU, which hides GPUs where nothing else is said.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from peer_bench import BATCHES, SHAPES, build, token_ids, with_adapter


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["train", "generate"])
    parser.add_argument("--shape", choices=SHAPES, default="qwen3-0.6b")
    parser.add_argument("--seq-len", type=int, default=4096)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--dtype", choices=["bf16", "autocast"], default="autocast")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--gc", action="store_true", help="gradient checkpointing")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--liger", action="store_true", help="Liger's kernels")
    parser.add_argument("--lora", action="store_true", help="rank 8 on all projections")
    parser.add_argument("--prompt-len", type=int, default=32)
    parser.add_argument("--max-new-tokens", type=int, default=2048)
    parser.add_argument("--device", default="cuda", help="cpu, to try the script without a GPU")
    return parser.parse_args()


def model_of(a, torch):
    if a.liger:
        from liger_kernel.transformers import apply_liger_kernel_to_qwen3

        apply_liger_kernel_to_qwen3()
    # What an adapter leaves alone needs no more than bf16.
    narrow = a.dtype == "bf16" or a.lora
    return build(a, torch.bfloat16 if narrow else torch.float32).to(a.device)


def wait(a, torch):
    if a.device == "cuda":
        torch.cuda.synchronize()


def emit(a, torch, tokens, seconds, **more):
    on_gpu = a.device == "cuda"
    result = dict(
        vars(a), tokens_per_s_median=tokens / statistics.median(seconds),
        tokens_per_s_best=tokens / min(seconds), seconds=seconds,
        peak_allocated_bytes=torch.cuda.max_memory_allocated() if on_gpu else None,
        peak_reserved_bytes=torch.cuda.max_memory_reserved() if on_gpu else None,
        device_name=torch.cuda.get_device_name() if on_gpu else "cpu",
        versions=dict(torch=torch.__version__), **more,
    )
    print("RESULT " + json.dumps(result), flush=True)


def train(a, torch):
    model = model_of(a, torch)
    if a.lora:
        model = with_adapter(model)
    if a.gc:
        if a.lora:
            model.enable_input_require_grads()
        model.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.01, fused=True)
    step = torch.compile(model) if a.compile else model
    ids = token_ids(a, model.config.vocab_size).to(a.device)
    context = contextlib.nullcontext
    if a.dtype == "autocast":
        context = lambda: torch.autocast(a.device, torch.bfloat16)
    seconds, losses, first = [], [], None
    for number in range(a.steps + (2 if a.compile else 1)):
        wait(a, torch)
        begun = time.perf_counter()
        batch = ids[number % BATCHES]
        with context():
            loss = step(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())
        wait(a, torch)
        seconds.append(time.perf_counter() - begun)
        first = first or time.time() - STARTED
    emit(a, torch, a.seq_len * a.batch_size, seconds[-a.steps:], losses=losses,
         seconds_to_first_step=first)


def generate(a, torch):
    a.dtype = "bf16"
    model = model_of(a, torch).eval()
    model.config.use_cache = True
    generator = torch.Generator().manual_seed(5)
    shape = (a.batch_size, a.prompt_len)
    ids = torch.randint(3, model.config.vocab_size, shape, generator=generator).to(a.device)
    common = dict(
        attention_mask=torch.ones_like(ids), do_sample=False, eos_token_id=None, pad_token_id=2,
        use_cache=True,
    )
    seconds, new = [], a.max_new_tokens
    with torch.inference_mode():
        model.generate(ids, max_new_tokens=4, **common)
        for _ in range(3):
            wait(a, torch)
            begun = time.perf_counter()
            model.generate(ids, max_new_tokens=new, min_new_tokens=new, **common)
            wait(a, torch)
            seconds.append(time.perf_counter() - begun)
    emit(a, torch, a.batch_size * new, seconds)


def main():
    a = arguments()
    import torch

    if a.device == "cuda" and not torch.cuda.is_available():
        sys.exit("there is no GPU that this PyTorch can use")
    dict(train=train, generate=generate)[a.command](a, torch)


if __name__ == "__main__":
    main()
