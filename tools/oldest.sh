#!/usr/bin/env bash
# Run the tests with the oldest versions that pyproject.toml admits: each lower bound is what is installed, into an
# environment that is kept at $DIME_VENV (.venv-oldest unless set). Arguments go to pytest, which says what failed.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
source tools/environment.sh
DIME_VENV="${DIME_VENV:-.venv-oldest}"
dime_environment --oldest test
OMP_NUM_THREADS=1 "$PYTHON" -m pytest --numprocesses 2 "$@"
