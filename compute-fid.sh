#!/usr/bin/env bash
# FID and sFID of an experiment: all of OUTPUT_PATH/Original against its counterfactuals that reached their target.
# usage: compute-fid.sh OUTPUT_PATH EXP_NAME [device] [flags of compute_FID.py]
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# the environment that run-tests.sh and demo.sh make, where no other one is active
own="${DIME_VENV:-$here/.venv}/bin/python"
[ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x "$own" ] || own="$(command -v python || command -v python3)"
python="${PYTHON:-$own}"

case "${1:-}" in
    -h | --help) exec "$python" "$here/compute_FID.py" --help ;;
esac
if [ $# -lt 2 ]; then
    echo "compute-fid.sh: error: expected OUTPUT_PATH EXP_NAME [device], found $# arguments" >&2
    exit 2
fi

output_path="$1"
exp_name="$2"
shift 2
device=0
if [ $# -gt 0 ] && [[ "$1" != --* ]]; then
    device="$1"
    shift
fi
exec "$python" "$here/compute_FID.py" --output-path "$output_path" --exp-name "$exp_name" --gpu "$device" "$@"
