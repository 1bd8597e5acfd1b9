#!/usr/bin/env bash
# chandler-cuda beside PyTorch with transformers on this machine's GPU: the same shapes, in turn, and a
# table of both.
#
#   packaging/cuda/build
#   python3 -m venv .venv && .venv/bin/pip install -r benches/requirements.txt   (with a CUDA build of torch)
#   benches/gpu/compare.sh --python .venv/bin/python [--rounds 3] [--steps 10] [--shape qwen3-0.6b]
#                          [--seq-len 4096] [--batch-size 16] [--results FILE] [--cudnn FOLDER|none]
#
# The peer runs in each setting that it has: f32 master weights (autocast) and bf16 alone, with gradient
# checkpointing and without, compiled and not, and with Liger's kernels where they are installed. What does
# not fit or is not there is left out, and said. chandler trains with f32 master weights and with bf16 alone,
# with the activations of all blocks kept, of none, and as a budget of 23.5 GiB allows.
set -euo pipefail
cd "$(dirname "$0")/../.."

python=python3 rounds=3 steps=10 shape=qwen3-0.6b seq_len=4096 batch_size=16
results=target/gpu-comparison.jsonl binary=target/release/chandler-cuda new_tokens=2048 cudnn=
while [ $# -gt 0 ]; do
  case $1 in
    --python) python=$2 ;;
    --rounds) rounds=$2 ;;
    --steps) steps=$2 ;;
    --shape) shape=$2 ;;
    --seq-len) seq_len=$2 ;;
    --batch-size) batch_size=$2 ;;
    --new-tokens) new_tokens=$2 ;;
    --results) results=$2 ;;
    --chandler) binary=$2 ;;
    --cudnn) cudnn=$2 ;;
    *) echo "what is $1?" >&2; exit 2 ;;
  esac
  shift 2
done
[ -x "$binary" ] || { echo "there is no $binary: packaging/cuda/build makes it" >&2; exit 1; }
mkdir -p "$(dirname "$results")"

# PyTorch's wheels bring CUDA's libraries, behind those of the system. Its cuDNN is older than the one that
# chandler's attention wants, so chandler gets one of its own, before all others.
wheels=$("$python" -c 'import nvidia; print(list(nvidia.__path__)[0])' 2> /dev/null || true)
libraries=$(find "${wheels:-/nowhere}" -maxdepth 2 -name lib -type d 2> /dev/null | paste -sd : || true)
if [ -z "$cudnn" ]; then
  cudnn=target/cuda/cudnn/nvidia/cudnn/lib
  if [ ! -e "$cudnn/libcudnn.so.9" ]; then
    "$python" -m pip install --quiet --no-deps --target target/cuda/cudnn nvidia-cudnn-cu13==9.28.1.4 >&2 || true
  fi
fi
found=${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}${libraries:+:$libraries}
if [ "$cudnn" = none ]; then
  ours=(env CHANDLER_CUDNN=off "LD_LIBRARY_PATH=${found#:}" "$binary")
else
  ours=(env "LD_LIBRARY_PATH=$(realpath -m "$cudnn")$found" "$binary")
fi
about=$("${ours[@]}" doctor 2>&1 || true)
grep -E "gpu|attention" <<< "$about" >&2 || true
if [ "$cudnn" != none ] && ! grep -q "by cuDNN" <<< "$about"; then
  echo "error: chandler finds no cuDNN in $cudnn, and its own attention kernels are slower" >&2
  echo "hint: --cudnn FOLDER says where libcudnn.so.9 (9.28 or later) lies, --cudnn none does without" >&2
  exit 1
fi
: > "$results"

# keep NAME SIDE COMMAND...: runs it and keeps its last line, or says why there is none.
keep() {
  local name=$1 side=$2 output
  shift 2
  echo "== $name, $side: ${*:1}" >&2
  if output=$("$@" 2>&1); then
    local line
    line=$(tail -n 1 <<< "$output")
    printf '{"work": "%s", "side": "%s", "result": %s}\n' "$name" "$side" "${line#RESULT }" >> "$results"
  else
    echo "   left out: $(grep -iE 'error|memory|no module' <<< "$output" | tail -n 1)" >&2
  fi
}

train_peer() {
  local name=$1
  shift
  keep "$name" "PyTorch $*" "$python" benches/gpu/peer.py train --shape "$shape" --seq-len "$seq_len" \
    --batch-size "$batch_size" --steps "$steps" "$@"
}

train_ours() {
  local name=$1
  shift
  keep "$name" "chandler $*" "${ours[@]}" bench train --device cuda --shape "$shape" --seq-len "$seq_len" \
    --batch-size "$batch_size" --steps "$steps" --dtype bf16 --json "$@"
}

for _ in $(seq "$rounds"); do
  for more in "" --gc --compile "--gc --compile" --liger "--gc --liger"; do
    # shellcheck disable=SC2086
    train_peer "full" --dtype autocast $more
    # shellcheck disable=SC2086
    train_peer "full, bf16 alone" --dtype bf16 $more
  done
  train_ours "full"
  train_ours "full" --kept-blocks 0
  train_ours "full" --budget 23.5GiB
  train_ours "full, bf16 alone" --no-master-weights --moments blockwise8
  train_ours "full, bf16 alone" --no-master-weights --moments blockwise8 --kept-blocks 0
  for more in "" --gc "--gc --liger"; do
    # shellcheck disable=SC2086
    train_peer "LoRA" --dtype bf16 --lora $more
  done
  train_ours "LoRA" --mode lora
  for batch in 1 32; do
    keep "generate, $batch side by side" "PyTorch" "$python" benches/gpu/peer.py generate \
      --shape "$shape" --batch-size "$batch" --max-new-tokens "$new_tokens"
    keep "generate, $batch side by side" "chandler" "${ours[@]}" bench generate --device cuda \
      --shape "$shape" --batch-size "$batch" --max-new-tokens "$new_tokens" --dtype bf16 --json
  done
done
python3 benches/gpu/table.py "$results"
