#!/usr/bin/env bash
# Build the documentation into site/, every warning an error (--quiet would drop warnings unseen); nothing is fetched.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export NO_MKDOCS_2_WARNING=1
exec .venv/bin/python -m mkdocs build --strict "$@"
