#!/usr/bin/env bash
# Sets up with what tests need, then checks style and types and runs all tests.
# Arguments go to pytest, for example: bash scripts/test.sh tests/decision; two processes share the files.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh dev
ruff check .
ruff format --check .
mypy
exec python -m pytest -n 2 --dist loadgroup "$@"
