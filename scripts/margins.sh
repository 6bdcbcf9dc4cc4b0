#!/usr/bin/env bash
# How far every bound of the tests lies from what is compared with it, in standard deviations over eight seeds.
#   scripts/margins.sh [pytest arguments]     lists the comparisons that are nearer than three
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export OMP_NUM_THREADS=1 PYTHONPYCACHEPREFIX=${TMPDIR:-/tmp}/denoiserl-margins
held=$(mktemp)
for shift in 1 2 3 4 5 6 7 8; do
    # Each run goes on after a failure: a failed comparison is listed by pytest, and those that held are measured.
    .venv/bin/python -m pytest -q -n "${WORKERS:-2}" --dist worksteal -p no:cacheprovider \
        -o enable_assertion_pass_hook=true --margins "$held" --seed-shift "$shift" "$@" | grep -E "^FAILED|passed|failed"
done
.venv/bin/python -m tests.margins "$held"
rm -f "$held"
