#!/bin/sh
# Finetune on every visible GPU; on several nodes with NNODES and MASTER set.
#
#   DATA_PATH=/data/imagenet PRETRAINED=output/pretrain-... sh run_finetune_multi.sh
#
# run_common.sh lists the settings.
set -eu
. "$(dirname "$0")/run_common.sh"
CFG=${CFG:-configs/vit_base_patch16_224_finetune.yaml}
run_main finetune "$@"
