#!/bin/sh
# Pretrain on every visible GPU; on several nodes with NNODES and MASTER set.
#
#   DATA_PATH=/data/imagenet sh run_pretrain_multi.sh
#
# run_common.sh lists the settings.
set -eu
. "$(dirname "$0")/run_common.sh"
CFG=${CFG:-configs/vit_base_patch16_224_pretrain.yaml}
run_main pretrain "$@"
