#!/bin/sh
# Weakly supervised pretraining (WSP) on every visible GPU; on several nodes with NNODES and MASTER set.
#
#   DATASET=webdataset DATA_PATH=/data/shards PRETRAINED=FILE sh run_wsp_multi.sh
#
# run_common.sh lists the settings.
set -eu
. "$(dirname "$0")/run_common.sh"
CFG=${CFG:-configs/maws/vit_base_patch16_224_wsp.yaml}
run_main pretrain "$@"
