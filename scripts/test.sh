#!/usr/bin/env bash
# Sets up, then checks style and types and runs all tests. Arguments go to pytest: bash scripts/test.sh tests/decision
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh
ruff check .
ruff format --check .
mypy
exec python -m pytest "$@"
