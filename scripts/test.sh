#!/usr/bin/env bash
# Sets up with what tests need, then checks style and types and runs all tests, two files at a time.
# Arguments go to pytest, for example: bash scripts/test.sh tests/decision
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh dev
ruff check .
ruff format --check .
mypy
exec python -m pytest --numprocesses 2 --dist loadfile "$@"
