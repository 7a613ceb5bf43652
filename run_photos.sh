#!/bin/sh
# From your own photos to a classifier: install, pretrain a micro ViT on them, and finetune it.
#
#   DATA_PATH=photos sh run_photos.sh
#
# photos has a folder of images for each class; or such folders below photos/train and photos/val. Without these, a
# tenth of each class becomes val. Images of 32 pixels, for a laptop. Writes output/photos and output/labels beside this
# script (OUTPUT=... for other photos), and resumes if it is started again. Arguments are settings: TRAIN.NUM_EPOCHS 50.
# Without an activated environment, the packages go to .venv. run_common.sh lists more settings.
set -eu
if [ ! -d "${DATA_PATH:-}" ]; then
    echo "error: DATA_PATH='${DATA_PATH:-}' is not a directory; give your photos' one: DATA_PATH=photos sh run_photos.sh" >&2
    exit 2
fi
DATA_PATH=$(cd "$DATA_PATH" && pwd)
. "$(dirname "$0")/run_common.sh"
if [ -z "${PYTHON:-}${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    setup_venv .venv 13 requirements.txt
    PYTHON=.venv/bin/python
fi
PYTHON=${PYTHON:-python3}
DATASET=${DATASET:-folder} OUTPUT=${OUTPUT:-output} RESUME=${RESUME:-auto}
share=0.1
for name in train training; do
    [ ! -d "$DATA_PATH/$name" ] || share=None
done
# What finetuning would stop at is said before the pretraining.
check=
[ "$share" = None ] || check="-val_fraction $share"
# shellcheck disable=SC2086 # two words
forward "$PYTHON" -m tools.check_dataset -dataset "$DATASET" -data_path "$DATA_PATH" $check
CFG=configs/vit_micro_patch4_32_pretrain.yaml
run_main pretrain -opts RUN photos TRAIN.NUM_EPOCHS 200 "DATA.VAL_FRACTION=$share" "$@"
CFG=configs/vit_micro_patch4_32_finetune.yaml PRETRAINED=$OUTPUT/photos
run_main finetune -opts RUN labels TRAIN.NUM_EPOCHS 100 MODEL.NUM_CLASSES None "DATA.VAL_FRACTION=$share" "$@"
echo "the classes of other photos: $PYTHON -m tools.predict $(quote "$OUTPUT/labels") PHOTOS -html labels.html"
