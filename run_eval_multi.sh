#!/bin/sh
# Evaluate a finetuned model on every visible GPU. (A probe: sh run_linear_probe_multi.sh -eval.)
#
#   DATA_PATH=/data/imagenet PRETRAINED=mae_finetuned_vit_base sh run_eval_multi.sh
#
# run_common.sh lists the settings.
set -eu
. "$(dirname "$0")/run_common.sh"
CFG=${CFG:-configs/vit_base_patch16_224_finetune.yaml}
run_main finetune -eval "$@"
