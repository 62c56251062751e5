#!/usr/bin/env bash
# All that needs a GPU, in one command of at most ten minutes: are half precision and compiled networks right there, and
# how fast is the paper's U-Net? The tables go into bench/RESULTS.md; commit that page.
#
# usage: bash bench/gpu.sh [GPU_INDEX]     PYTHON=… chooses the interpreter
set -euo pipefail
cd "$(dirname "$0")/.."
gpu="${1:-0}"
python="${PYTHON:-python}"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
part() { echo "== $1"; shift; timeout "$@" || echo "== failed or cut off (exit code $?)"; }

"$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())" || { echo "no CUDA GPU here" >&2; exit 2; }

demo=(--preset demo --query_label Smiling --batch_size 32 --data_dir "$work/faces" --gpu "$gpu")
if [ -e models/demo/ddpm.safetensors ]; then
    "$python" make-drawn-faces.py --output_path "$work/faces" --num_train 0 --num_val 64
    part "parity of precisions, the demo's networks" 120 "$python" bench/parity.py --compile True -- "${demo[@]}"
fi
part "the paper's U-Net, batch 50" 120 "$python" bench/speed.py --network paper --device "$gpu" --batch_size 50 --run_steps 6
part "the paper's U-Net, batch 1" 60 "$python" bench/speed.py --network paper --device "$gpu" --batch_size 1 --run_steps 10
part "compiled, batch 50" 160 "$python" bench/speed.py --network paper --device "$gpu" --batch_size 50 --run_steps 6 --compile True
part "compiled, batch 1" 130 "$python" bench/speed.py --network paper --device "$gpu" --batch_size 1 --run_steps 10 --compile True
