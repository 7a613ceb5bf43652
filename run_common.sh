# Sourced by the run_*.sh scripts: run_main MODE [FLAGS...] runs main_multi_gpu_MODE.py with the settings below.
#
# Settings, all from the environment; what is not set is left to the recipe:
#   CFG           YAML file of the recipe
#   DATASET       imagenet2012 | folder | cifar10 | cifar100 | digits | synthetic
#   DATA_PATH     directory of the data set
#   OUTPUT        directory for the runs
#   PRETRAINED    weights to start from, or to evaluate
#   RESUME        run to continue, or auto
#   BATCH_SIZE    images per process and micro-step
#   ACCUM_ITER    micro-steps per update
#   AMP           fp16 (default) | bf16 (better, on GPUs that have it) | none
#   NPROC         processes on this node; default: one per visible GPU
#   NNODES        number of nodes; with it, on all nodes the same MASTER=IP:PORT of the first one
#   NODE_RANK     number of this node; default: by order of arrival
#   DEVICE        cpu | gpu
#   PYTHON        interpreter; default: python3 of an activated environment, else .venv/bin/python if it is there
# Arguments of the script are passed on.

cd "$(dirname "$0")"

run_main() {
    mode=$1
    shift
    if [ -z "${PYTHON:-}" ]; then
        PYTHON=python3
        # An environment that the user activated goes first: it may have the GPU build.
        if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -x .venv/bin/python ]; then
            PYTHON=.venv/bin/python
        fi
    fi
    AMP=${AMP:-fp16}
    [ "$AMP" != "none" ] || AMP=
    exec "$PYTHON" "main_multi_gpu_$mode.py" -cfg "$CFG" \
        ${DATASET:+-dataset "$DATASET"} \
        ${DATA_PATH:+-data_path "$DATA_PATH"} \
        ${OUTPUT:+-output "$OUTPUT"} \
        ${PRETRAINED:+-pretrained "$PRETRAINED"} \
        ${RESUME:+-resume "$RESUME"} \
        ${BATCH_SIZE:+-batch_size "$BATCH_SIZE"} \
        ${ACCUM_ITER:+-accum_iter "$ACCUM_ITER"} \
        ${AMP:+-amp "$AMP"} \
        ${NPROC:+-nproc "$NPROC"} \
        ${NNODES:+-nnodes "$NNODES"} \
        ${MASTER:+-master "$MASTER"} \
        ${NODE_RANK:+-node_rank "$NODE_RANK"} \
        ${DEVICE:+-device "$DEVICE"} \
        "$@"
}
