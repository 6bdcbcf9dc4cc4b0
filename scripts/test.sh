#!/usr/bin/env bash
# Lint, types, documentation, then the tests: everything runs even if something before it failed; the tests come last.
#   scripts/test.sh [pytest arguments]     WORKERS=4 for more processes
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bin=$PWD/.venv/bin
# Two threads in all: two torch processes with two threads each on two cores are up to 90 times slower.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} OPENBLAS_NUM_THREADS=1
workers=${WORKERS:-$((OMP_NUM_THREADS > 1 ? 1 : 2))}
export MKL_NUM_THREADS=$OMP_NUM_THREADS

failed=()
check() {
    local name=$1 log
    shift
    if log=$("$@" 2>&1 </dev/null); then
        printf '%-8s passed\n' "$name"
    else
        printf '%-8s FAILED\n%s\n' "$name" "$log"
        failed+=("$name")
    fi
}
check lint "$bin/ruff" check .
check format "$bin/ruff" format --check .
check types "$bin/pyright"
check imports "$bin/lint-imports" --no-logo
check docs scripts/docs.sh

"$bin/python" -m pytest -n "$workers" --dist worksteal --timeout 300 "$@" </dev/null || failed+=(tests)
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
