#!/bin/sh
# Train a text tower to a frozen image tower (LiT) on every visible GPU; on several nodes with NNODES and MASTER set.
#
#   DATASET=webdataset DATA_PATH=/data/shards PRETRAINED=FILE sh run_lit_multi.sh -opts LIT.TOKENIZER FILE
#
# run_common.sh lists the settings.
set -eu
. "$(dirname "$0")/run_common.sh"
CFG=${CFG:-configs/maws/vit_base_patch16_224_lit.yaml}
run_main pretrain "$@"
