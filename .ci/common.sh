# Functions that the parts share.  $root is the repository, and $work a directory for everything that they make.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
checks=$root/.ci/checks
work=$CI_WORK

# The user's settings must not change a result.  pip's cache only saves time.
for name in $(compgen -e); do
    case $name in PYTHON* | QATCORE_* | VIRTUAL_ENV | CC | CFLAGS | LDFLAGS) unset "$name" ;; esac
done
export PIP_CACHE_DIR=${PIP_CACHE_DIR:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/pip}
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_QUIET=1 PIP_PROGRESS_BAR=off
export PYENV_ROOT=${PYENV_ROOT:-$(pyenv root 2>/dev/null || echo "${HOME:-/root}/.pyenv")}
export HOME=$work/home
mkdir -p "$HOME"

# Two parts run at the same time: with several OpenMP threads in each, they would wait for each other.
export OMP_NUM_THREADS=1
# The parts that build the same sources with the same flags compile them once.
export CCACHE_DIR=$work/ccache CCACHE_NOHASHDIR=1 PATH=/usr/lib/ccache:$PATH

files=()

# Print the directory of an interpreter of this minor version.
interpreter() {
    local found
    found=$(printf '%s\n' "$PYENV_ROOT"/versions/"$1".*/bin | sort -V | tail -n 1)
    if [[ ! -x $found/python$1 ]]; then
        found=$(command -v "python$1") || { echo "there is no Python $1" >&2; return 1; }
        found=${found%/*}
    fi
    echo "$found"
}

# Make a fresh clone as $work/NAME.
clone() {
    git clone --quiet "$root" "$work/$1"
}

# Make a fresh environment as $work/NAME, with these packages if there are any.
environment() {
    local name=$1 version=$2
    shift 2
    "$(interpreter "$version")/python$version" -m venv "$work/$name"
    (($# == 0)) || "$work/$name/bin/pip" install "$@"
}

# Make the sdist, once.  Parts run at the same time, so a lock guards everything that several parts need.
sdist() {
    {
        flock 9
        if [[ ! -d $work/dist ]]; then
            clone sdist-source
            environment build 3.11 build
            "$work/build/bin/python" -m build --sdist --outdir "$work/dist" "$work/sdist-source" >"$work/sdist.log"
            tar -xzf "$work"/dist/qatcore-*.tar.gz -C "$work"
            mv "$work"/qatcore-*/ "$work/unpacked"
        fi
    } 9>"$work/sdist.lock"
}

# Make an environment $work/pyVERSION, once, with the wheel that is built from the sdist.
wheel_environment() {
    sdist
    {
        flock 9
        if [[ ! -d $work/py$1 ]]; then
            environment "py$1" "$1"
            "$work/py$1/bin/pip" wheel --no-deps --wheel-dir "$work/wheels$1" "$work"/dist/qatcore-*.tar.gz
            "$work/py$1/bin/pip" install "$(echo "$work/wheels$1"/qatcore-*.whl)[test]"
        fi
    } 9>"$work/py$1.lock"
}

# Make the environment $work/torch: the same, with PyTorch and all packages of the examples and benchmarks.
torch_environment() {
    wheel_environment 3.11
    {
        flock 9
        if [[ ! -d $work/torch ]]; then
            environment torch 3.11 -r "$work/unpacked/examples/requirements.txt" -r "$work/unpacked/bench/requirements.txt" \
                "$(echo "$work"/wheels3.11/qatcore-*.whl)[test,torch]"
        fi
    } 9>"$work/torch.lock"
}

# Run the tests of the sdist on two processes, in the environment $work/NAME, in a folder without the package's sources.
# TESTS is an expression of markers that selects the tests.  An array $files, if there is one, has the files to run.
suite() {
    local name=$1 tests=$2 folder
    shift 2
    sdist
    folder=$(mktemp -d "$work/tests-$name-XXX")
    cp -r "$work"/unpacked/{tests,docs,pyproject.toml} "$folder"
    (cd "$folder" && "$@" "$work/$name/bin/python" -P -m pytest -q -m "$tests" "${files[@]}")
}

# Print the block of code in a DOCUMENT, in a LANGUAGE, below a MARKER.
marked_block() {
    local block
    block=$(awk -v marker="<!-- $3 -->" -v fence="\`\`\`$2" '
        $0 == marker { found = 1; next }
        found && $0 == fence { inside = 1; next }
        inside && /^```$/ { exit }
        inside { print }
    ' "$root/$1")
    [[ -n $block ]] || { echo "$1: no $2 below <!-- $3 -->" >&2; return 1; }
    echo "$block"
}

# Run the commands below a MARKER of a DOCUMENT, as a reader would, in $work/NAME.
follow() {
    local commands
    commands=$(marked_block "$1" sh "$2")
    echo "$commands"
    (cd "$work/$3" && PATH="$(interpreter 3.11):$PATH" bash -euo pipefail -c "$commands")
}

# Make an environment $work/NAME with a build that has switches of setup.py on.
special_environment() {
    local name=$1
    shift
    clone "$name-source"
    environment "$name" 3.11
    env "${@/%/=1}" "$work/$name/bin/pip" install "$work/$name-source[test]"
}
