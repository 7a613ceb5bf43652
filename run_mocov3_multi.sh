#!/bin/sh
# Pretrain by MoCo v3 on every visible GPU; on several nodes with NNODES and MASTER set.
#
#   DATA_PATH=/data/imagenet sh run_mocov3_multi.sh
#
# run_common.sh lists the settings.
set -eu
. "$(dirname "$0")/run_common.sh"
CFG=${CFG:-configs/mae_lite/vit_base_patch16_224_moco.yaml}
run_main pretrain "$@"
