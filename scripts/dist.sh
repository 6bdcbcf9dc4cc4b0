#!/usr/bin/env bash
# Build the sdist and, from it, the wheel into dist/; refuse a wheel that lacks a file; install it into an empty
# environment, first without extras and then with [demo], and try it there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$PWD
fail() { printf 'dist: %s\n' "$*" >&2; exit 1; }
.venv/bin/python -m uv --version >/dev/null 2>&1 || fail "uv is not in .venv: .venv/bin/python -m pip install uv"

rm -rf dist
.venv/bin/python -m uv build --quiet --out-dir dist
rm -f dist/.gitignore
.venv/bin/python -m uv tool run --quiet twine check --strict dist/*
wheel=$(ls "$root"/dist/*.whl)

# The wheel was made from the sdist: what it holds, both hold.
list() { .venv/bin/python -c 'import sys, zipfile; print(*zipfile.ZipFile(sys.argv[1]).namelist(), sep="\n")' "$wheel"; }
wanted=$(git ls-files src/denoiserl | sed 's#^src/##' | sort)
[ -n "$wanted" ] || fail "git knows no files of src/denoiserl: run this in a clone."
lacks=$(comm -23 <(printf '%s\n' "$wanted") <(list | sort))
[ -z "$lacks" ] || fail "the wheel lacks files that git knows; see [tool.hatch.build] in pyproject.toml:"$'\n'"$lacks"
more=$(comm -13 <(printf '%s\n' "$wanted") <(list | grep -v '\.dist-info/' | sort))
[ -z "$more" ] || fail "the wheel holds files that git does not know: add them to git, or remove them:"$'\n'"$more"

empty=$(mktemp -d)
trap 'rm -rf "$empty"' EXIT
scripts/setup.sh "" "$empty/env" "$wheel"
unset PYTHONPATH
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
bin=$empty/env/bin
try() { (cd "$empty" && "$@" >"$empty/said" 2>&1) || { cat "$empty/said" >&2; fail "this fails in the empty environment: ${*##*/}"; }; }
try "$bin/python" -c 'import denoiserl, sys; sys.exit(not denoiserl.__file__.startswith(sys.prefix))'
try "$bin/denoiserl" list
try "$bin/denoiserl" claim --list
try "$bin/denoiserl" run flow_grpo --iterations 2 --num-prompts 2 --pretrain-updates 20 --no-progress --out run
try "$bin/denoiserl" run run --no-progress
scripts/setup.sh demo "$empty/env" "$wheel"
try "$bin/denoiserl" eval run --trials 4
try "$bin/denoiserl" report run
ls -l "$root"/dist
