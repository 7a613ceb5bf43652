# Sourced by run_quickstart.sh and run_tests.sh: setup_venv DIRECTORY REQUIREMENTS... makes a virtual environment.
#
# PYTHON chooses the interpreter; otherwise the first suitable one of python3, python3.13, ... is taken.

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

# $1: directory; $2: highest minor version; then requirement files.
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
        echo "installing $* into $venv"
        for file in "$@"; do
            "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$file"
        done
        echo "$wanted" >"$venv/installed.txt"
    fi
}
