#!/bin/sh
# Contrastive tuning of a pretrained autoencoder (MAE-CT) on every visible GPU: head stage, then tuning stage.
#
#   DATA_PATH=/data/imagenet PRETRAINED=output/pretrain-... sh run_contrastive_multi.sh
#
# Started again, it resumes where it was stopped; a stage that has ended is not repeated. Besides run_common.sh's settings:
#   MODEL         recipes: configs/mae_ct/MODEL_contrastive_{head,tuning}[_aug].yaml (default: vit_base_patch16_224)
#   AUG           minimal (default) | aug: colour jitter, blur, grey and solarisation, too
#   STAGE         both (default) | head | tuning; tuning takes PRETRAINED as the head stage's run unless that is here
#   NAME          of the runs, which are OUTPUT/NAME-head and OUTPUT/NAME-tuning (default: contrastive-$AUG)
# Arguments are passed on to both stages. With -dry_run they print their plans; the tuning stage's needs the head's run.
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
dry_run=
for argument in "$@"; do
    case $argument in
    -cfg | --cfg | -output | --output | -pretrained | --pretrained | -resume | --resume | -eval | --eval)
        echo "error: $argument: differs from stage to stage; use the settings above instead (OUTPUT, PRETRAINED, ...)" >&2
        exit 2 ;;
    -dry_run | --dry_run) dry_run=yes ;;
    esac
done
RESUME=auto
if [ "$STAGE" != tuning ]; then
    if [ -z "${PRETRAINED:-}" ]; then
        echo "error: PRETRAINED is not set: the run or the weights of a pretrained autoencoder" >&2
        exit 2
    fi
    CFG=configs/mae_ct/${MODEL}_contrastive_head$suffix.yaml
    run_main pretrain "$@" -opts RUN "$NAME-head" || exit $?
fi
if [ "$STAGE" = both ] && [ -n "$dry_run" ] && [ ! -d "$OUTPUT/$NAME-head" ]; then
    echo "the tuning stage starts from the head stage's run, $OUTPUT/$NAME-head, so there is no plan of it yet"
elif [ "$STAGE" != head ]; then
    [ ! -d "$OUTPUT/$NAME-head" ] || PRETRAINED=$OUTPUT/$NAME-head
    CFG=configs/mae_ct/${MODEL}_contrastive_tuning$suffix.yaml
    run_main pretrain "$@" -opts RUN "$NAME-tuning" || exit $?
    [ -z "$dry_run" ] || exit 0
    probe=configs/mae_ct/${MODEL}_contrastive_linearprobe.yaml # reads what the head has read, where that is not the class token
    [ -f "$probe" ] || probe=configs/mae_ct/${MODEL}_linearprobe_sweep.yaml
    echo "the tuned encoder: $OUTPUT/$NAME-tuning (its averaged weights are read); to probe it:"
    echo "    DATA_PATH=$(quote "${DATA_PATH:-DIR}") PRETRAINED=$(quote "$OUTPUT/$NAME-tuning") CFG=$probe sh run_linear_probe_multi.sh"
fi
