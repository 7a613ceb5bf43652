#!/bin/sh
# From your own photos to a classifier: install, pretrain a micro ViT on them, and finetune it.
#
#   DATA_PATH=photos sh run_photos.sh
#
# photos has a folder of images for each class; or such folders below photos/train and photos/val. Without these, a
# tenth of each class becomes val. Images of 32 pixels, for a laptop. Writes output/photos and output/labels, and resumes
# if it is started again. Without an activated environment, the packages go to .venv. run_common.sh lists the settings.
set -eu
. "$(dirname "$0")/run_common.sh"
if [ -z "${PYTHON:-}${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    setup_venv .venv 13 requirements.txt
fi
DATASET=${DATASET:-folder} OUTPUT=${OUTPUT:-output} RESUME=${RESUME:-auto}
split=DATA.VAL_FRACTION=0.1
for name in train training; do
    [ ! -d "${DATA_PATH:-}/$name" ] || split=DATA.VAL_FRACTION=None
done
CFG=configs/vit_micro_patch4_32_pretrain.yaml
run_main pretrain -opts RUN photos TRAIN.NUM_EPOCHS 200 "$split" "$@"
CFG=configs/vit_micro_patch4_32_finetune.yaml PRETRAINED=$OUTPUT/photos
run_main finetune -opts RUN labels TRAIN.NUM_EPOCHS 100 MODEL.NUM_CLASSES None "$split" "$@"
echo "the classes of other photos: python -m tools.predict $(quote "$OUTPUT/labels") PHOTOS -html labels.html"
