# Sourced by the run_*.sh scripts: run_main MODE [FLAGS...] runs main_multi_gpu_MODE.py with the settings below, and
# setup_venv DIRECTORY NEWEST REQUIREMENTS... makes a virtual environment.
#
# Settings, all from the environment; what is not set is left to the recipe:
#   CFG           YAML file of the recipe
#   DATASET       imagenet2012 | folder | cifar10 | cifar100 | digits | synthetic | lists | webdataset | ...
#   DATA_PATH     directory of the data set
#   OUTPUT        directory for the runs
#   PRETRAINED    weights to start from, or to evaluate
#   RESUME        run to continue, or auto
#   BATCH_SIZE    images per process and micro-step
#   ACCUM_ITER    micro-steps per update
#   AMP           auto (default: bf16 or fp16, as the GPU has it) | fp16 | bf16 | none
#   NPROC         processes on this node; default: one per visible GPU
#   NNODES        number of nodes; with it, on all nodes the same MASTER=IP:PORT of the first one
#   NODE_RANK     number of this node; default: by order of arrival
#   DEVICE        cpu | gpu | gpu:3 | npu | xpu | ...
#   RETRIES       how often to resume from the last checkpoint after a crash; not after a user error or a signal
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
    set -- "$PYTHON" "main_multi_gpu_$mode.py" -cfg "$CFG" \
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
    if [ -n "${RETRIES:-}" ]; then
        # Without a name, "auto" could resume an older run if this one crashed before its first checkpoint.
        case " $* " in
        *" -resume "* | *" --resume "*) ;;
        *" RUN "*) set -- "$@" -resume auto ;;
        *) set -- "$@" -resume auto -opts RUN "$mode-$(date +%Y%m%d-%H%M%S)" ;;
        esac
    fi
    retry "$@"
}

# Run a command until it succeeds, was asked to stop (75, or a signal), has nothing to retry (2), or was tried often
# enough; returns its exit code.
retry() {
    attempt=0
    while :; do
        code=0
        forward "$@" || code=$?
        attempt=$((attempt + 1))
        case $code in
        0 | 2 | 75 | 129 | 130 | 131 | 138 | 143) return "$code" ;;
        esac
        [ "$attempt" -le "${RETRIES:-0}" ] || return "$code"
        echo "exit code $code: resuming from the last checkpoint, retry $attempt of $RETRIES" >&2
    done
}

# Run a command, hand SIGTERM, SIGINT, SIGHUP, SIGQUIT and SIGUSR1 on to it as SIGTERM, and return its exit code. Not by exec: as
# process 1 of a container, a program that has not set its handlers yet gets no signal.
asked=0 child=
trap 'asked=$((asked + 1)); [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || :' TERM INT HUP QUIT USR1
forward() {
    [ "$asked" = 0 ] || return 143
    "$@" &
    child=$!
    [ "$asked" = 0 ] || kill -TERM "$child" 2>/dev/null || :
    code=143
    while :; do
        before=$asked
        last=0
        wait "$child" || last=$?
        # 127 after a signal: the command was gone by then, and its code is known.
        [ "$last" = 127 ] && [ "$asked" != 0 ] || code=$last
        [ "$asked" != "$before" ] || break
    done
    child=
    return "$code"
}

# Print a text as a word of a shell's command line.
quote() {
    case $1 in
    *[!A-Za-z0-9_./:=@%+-]* | '') printf "'%s'\n" "$(printf %s "$1" | sed "s/'/'\\\\''/g")" ;;
    *) printf '%s\n' "$1" ;;
    esac
}

# Print the interpreter to use. $1: highest minor version of Python 3 that will do.
find_python() {
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.10}; do
        if "$candidate" -c "import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, $1))" 2>/dev/null; then
            echo "$candidate"
            return 0
        fi
    done
    echo "error: ${PYTHON:-none of python3, python3.13, ..., python3.10} is no Python 3.10 to 3.$1; set PYTHON=/path/to/python" >&2
    return 1
}

# $1: directory; $2: highest minor version of Python 3; then requirement files. PYTHON chooses the interpreter; otherwise
# the first suitable one of python3, python3.13, ... is taken.
setup_venv() {
    venv=$1
    newest=$2
    shift 2
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then # absent, or left half-made
        python=$(find_python "$newest") || exit 1
        "$python" -m venv --clear "$venv"
    fi
    wanted=$(cat requirements.txt requirements/*.txt; echo "$*")
    if [ "$(cat "$venv/installed.txt" 2>/dev/null)" != "$wanted" ]; then
        echo "installing $* into $venv: some hundred megabytes, and some minutes without a word"
        for file in "$@"; do
            forward "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$file"
        done
        echo "$wanted" >"$venv/installed.txt"
    fi
}
