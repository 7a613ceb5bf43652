#!/bin/sh
# Lint and test in a virtual environment that this script makes.
#
#   sh run_tests.sh                  everything but the comparison with torch
#   TORCH=1 sh run_tests.sh          with it, and with the ViTs of PaddleDetection and PaddleSeg
#   PADDLE=2.6 sh run_tests.sh       the quick tests on Paddle 2.6.2
#   sh run_tests.sh tests/test_mae.py -k mask      arguments go to pytest
set -eu
cd "$(dirname "$0")"
. ./run_common.sh
unset PYTHONDONTWRITEBYTECODE  # each of some thousand processes would compile all modules again

if [ "${PADDLE:-}" = "2.6" ]; then
    setup_venv .venv-paddle26 12 requirements/paddle26.txt requirements/dev.txt
    exec .venv-paddle26/bin/python -m pytest -n 2 -m quick "$@"
fi
if [ -n "${TORCH:-}" ]; then
    setup_venv .venv 13 requirements.txt requirements/dev.txt requirements/torch.txt
    .venv/bin/python -m pip install --quiet --no-deps -r requirements/engines.txt
else
    setup_venv .venv 13 requirements.txt requirements/dev.txt
fi
.venv/bin/ruff check .
.venv/bin/ruff format --check .
exec .venv/bin/python -m pytest -n 2 "$@"
