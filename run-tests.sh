#!/usr/bin/env bash
# Run the tests, installing what they need first (see tools/environment.sh). Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")"
source tools/environment.sh
dime_environment test timm hf onnx diffusers # with the libraries that make the files of every kind

"$PYTHON" -m ruff check .
"$PYTHON" -m ruff format --check .
# two processes of one thread each are faster than one of two: the networks of the tests are small
OMP_NUM_THREADS=1 "$PYTHON" -m pytest --numprocesses 2 "$@"
