#!/bin/sh
# Contrastive tuning of a pretrained autoencoder (MAE-CT) on every visible GPU: head stage, then tuning stage.
#
#   DATA_PATH=/data/imagenet PRETRAINED=output/pretrain-... sh run_contrastive_multi.sh
#
# Started again, it goes on where it was stopped; a stage that has ended is not repeated. Besides run_common.sh's settings:
#   MODEL         recipes: configs/MODEL_contrastive_{head,tuning}[_aug].yaml (default: vit_base_patch16_224)
#   AUG           minimal (default) | aug: colour jitter, blur, grey and solarisation, too
#   STAGE         both (default) | head | tuning; tuning takes PRETRAINED as the head stage's run unless that is here
#   NAME          of the runs, which are OUTPUT/NAME-head and OUTPUT/NAME-tuning (default: contrastive-$AUG)
# Arguments are passed on to both stages.
set -eu
. "$(dirname "$0")/run_common.sh"
MODEL=${MODEL:-vit_base_patch16_224}
AUG=${AUG:-minimal}
STAGE=${STAGE:-both}
OUTPUT=${OUTPUT:-output}
NAME=${NAME:-contrastive-$AUG}
case $AUG in
minimal) suffix= ;;
aug) suffix=_aug ;;
*) echo "error: AUG=$AUG: must be minimal or aug" >&2; exit 2 ;;
esac
case $STAGE in
both | head | tuning) ;;
*) echo "error: STAGE=$STAGE: must be both, head or tuning" >&2; exit 2 ;;
esac
RESUME=auto
if [ "$STAGE" != tuning ]; then
    if [ -z "${PRETRAINED:-}" ]; then
        echo "error: PRETRAINED is not set: the run or the weights of a pretrained autoencoder" >&2
        exit 2
    fi
    CFG=configs/${MODEL}_contrastive_head$suffix.yaml
    (run_main pretrain "$@" -opts RUN "$NAME-head") || exit $?
fi
if [ "$STAGE" != head ]; then
    [ ! -d "$OUTPUT/$NAME-head" ] || PRETRAINED=$OUTPUT/$NAME-head
    CFG=configs/${MODEL}_contrastive_tuning$suffix.yaml
    (run_main pretrain "$@" -opts RUN "$NAME-tuning") || exit $?
    echo "the tuned encoder: $OUTPUT/$NAME-tuning (its averaged weights are read); to probe it:"
    echo "    DATA_PATH=${DATA_PATH:-DIR} PRETRAINED=$OUTPUT/$NAME-tuning CFG=configs/${MODEL}_linearprobe.yaml sh run_linear_probe_multi.sh"
fi
