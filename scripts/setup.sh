#!/usr/bin/env bash
# Make .venv and install the package, editable, with extras: scripts/setup.sh [extras], "dev,docs" when none are named.
# A machine without a GPU gets the CPU build of torch, and the script fails if it finds anything of CUDA afterwards.
# A stamp keyed on what decides the result makes every later run a matter of milliseconds.
#   PYTHON=python3.12   the interpreter to build on (3.11 or newer)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extras=${1:-dev,docs}
venv=.venv
python=$venv/bin/python
constraint=constraints/cpu.txt

gpu() { nvidia-smi -L >/dev/null 2>&1; }
if gpu; then machine=gpu; else machine=cpu; fi

stamp=$venv/.installed-${extras//,/-}
key="$PWD $extras $machine $(cat pyproject.toml "$constraint" scripts/setup.sh | cksum)"
if [ -x "$python" ] && [ -f "$stamp" ] && [ "$(<"$stamp")" = "$key" ]; then exit 0; fi

fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
modern() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

# A folder that was copied here from elsewhere still points at its old place: make it anew.
if [ ! -x "$python" ] || ! "$python" -m pip --version >/dev/null 2>&1; then
    base=
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
        if modern "$candidate"; then base=$candidate; break; fi
    done
    [ -n "$base" ] || fail "no Python 3.11 or newer found (tried ${PYTHON:-python3, python3.13, python3.12, python3.11}): install one, or name it with PYTHON=/path/to/python."
    echo "setup: making $venv with $("$base" --version 2>&1)"
    "$base" -m venv --clear "$venv" || fail "$base cannot make virtual environments: install its venv module (on Debian and Ubuntu: the package python3-venv)."
fi
modern "$python" || fail "$venv holds an older Python: remove it and run this again."

options=()
backend=()
if [ "$machine" = cpu ]; then
    options=(-c "$constraint")
    # uv does not read pip's settings: hand it the folder of wheels that pip knows, or ask for the CPU index.
    export UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-$("$python" -m pip config get global.find-links 2>/dev/null | paste -sd, - || true)}}
    [ -n "$UV_FIND_LINKS" ] || backend=(--torch-backend=cpu)
fi

echo "setup: installing denoiserl[$extras] for a machine $([ $machine = gpu ] && echo with || echo without) a GPU"
installed=no
if "$python" -m uv --version >/dev/null 2>&1 || "$python" -m pip install --quiet --disable-pip-version-check uv; then
    if "$python" -m uv pip install --quiet --python "$python" ${options[@]+"${options[@]}"} ${backend[@]+"${backend[@]}"} -e ".[$extras]"; then
        installed=yes
    else
        echo "setup: uv did not manage, trying pip" >&2
    fi
else
    echo "setup: uv cannot be installed here, using pip" >&2
fi
if [ $installed = no ]; then
    "$python" -m pip install --quiet --disable-pip-version-check ${options[@]+"${options[@]}"} -e ".[$extras]" || fail "the installation failed: the messages above say why."
fi

if [ "$machine" = cpu ]; then
    "$python" scripts/no_cuda.py || exit 1
fi
printf '%s' "$key" >"$stamp"
echo "setup: done, $SECONDS s"
