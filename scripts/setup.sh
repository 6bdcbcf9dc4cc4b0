#!/usr/bin/env bash
# Make .venv and install the package, editable, with extras: scripts/setup.sh [extras], "dev,docs" when none are named.
#   scripts/setup.sh EXTRAS FOLDER WHEEL     install a wheel into another folder's environment; EXTRAS may be ""
# A machine without a GPU gets the CPU build of torch, and the script fails if it finds anything of CUDA afterwards.
# A stamp keyed on what decides the result makes every later run a matter of milliseconds.
#   PYTHON=python3.12   the interpreter to build on (3.11 to 3.13)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

extras=${1-dev,docs}
venv=${2:-.venv}
package=${3:-.}
python=$venv/bin/python
constraint=constraints/cpu.txt

gpu() { nvidia-smi -L >/dev/null 2>&1; }
if gpu; then machine=gpu; else machine=cpu; fi

fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }
supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1; }
version() { "$1" -c 'import sys; print("Python %d.%d" % sys.version_info[:2])' 2>/dev/null || echo "no Python"; }

if [ -n "${PYTHON:-}" ] && [ -x "$python" ] && [ "$(version "$PYTHON")" != "$(version "$python")" ]; then
    fail "$venv holds $(version "$python"), and PYTHON=$PYTHON is $(version "$PYTHON"): remove $venv, or leave PYTHON out."
fi

stamp=$venv/.installed-${extras//,/-}
key="$PWD $extras $package $machine $(cat pyproject.toml "$constraint" scripts/setup.sh | cksum)"
if [ -x "$python" ] && [ -f "$stamp" ] && [ "$(<"$stamp")" = "$key" ]; then exit 0; fi

# A folder that was copied here from elsewhere still points at its old place: make it anew.
if [ ! -x "$python" ] || ! "$python" -m pip --version >/dev/null 2>&1; then
    base=
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
        if supported "$candidate"; then base=$candidate; break; fi
    done
    [ -n "$base" ] || fail "no Python 3.11 to 3.13 found (tried ${PYTHON:-python3, python3.13, python3.12, python3.11}): install one, or name it with PYTHON=/path/to/python."
    echo "setup: making $venv with $("$base" --version 2>&1)"
    "$base" -m venv --clear "$venv" || fail "$base cannot make virtual environments: install its venv module (on Debian and Ubuntu: the package python3-venv)."
fi
supported "$python" || fail "$venv holds a Python that is not 3.11 to 3.13: remove it and run this again."

target=("$package${extras:+[$extras]}")
[ "$package" != . ] || target=(-e "${target[0]}")
options=()
backend=()
if [ "$machine" = cpu ]; then
    options=(-c "$constraint")
    # uv does not read pip's settings: hand it the folder of wheels that pip knows, or ask for the CPU index.
    export UV_FIND_LINKS=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-$("$python" -m pip config get global.find-links 2>/dev/null | paste -sd, - || true)}}
    [ -n "$UV_FIND_LINKS" ] || backend=(--torch-backend=cpu)
fi

echo "setup: installing denoiserl${extras:+[$extras]} for a machine $([ $machine = gpu ] && echo with || echo without) a GPU"
installed=no
if "$python" -m uv --version >/dev/null 2>&1 || "$python" -m pip install --quiet --disable-pip-version-check uv; then
    if "$python" -m uv pip install --quiet --python "$python" ${options[@]+"${options[@]}"} ${backend[@]+"${backend[@]}"} "${target[@]}"; then
        installed=yes
    else
        echo "setup: uv did not manage, trying pip" >&2
    fi
else
    echo "setup: uv cannot be installed here, using pip" >&2
fi
if [ $installed = no ]; then
    "$python" -m pip install --quiet --disable-pip-version-check ${options[@]+"${options[@]}"} "${target[@]}" || fail "the installation failed: the messages above say why."
fi

if [ "$machine" = cpu ]; then
    "$python" scripts/no_cuda.py || exit 1
fi
printf '%s' "$key" >"$stamp"
echo "setup: done, $SECONDS s"
