#!/bin/sh
# From nothing to a report: install, then pretrain, probe, finetune and evaluate on handwritten digits.
#
#   sh run_quickstart.sh
#
# Needs Python 3.10 to 3.13 and no download but the packages. Writes output/quickstart/report.html, and fails if the
# accuracies are not what they should be.
set -eu
cd "$(dirname "$0")"
. ./run_common.sh
setup_venv .venv 13 requirements.txt
forward .venv/bin/python -m tools.quickstart "$@"
