#!/usr/bin/env bash
# Sets up and runs the main job: two ranks, a small model, with and without the cache. No GPU; only packages are fetched.
# More options go at the end, for example: bash scripts/quickstart.sh --num_inference_steps 30
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/setup.sh ""
# A folder of its own for what it learns, empty each time, so that every run shows how it learns.
export FASTCACHE_HOME="$PWD/results/quickstart/home"
rm -rf "$FASTCACHE_HOME"
exec torchrun --standalone --nproc_per_node 2 -m fastcache_xdit generate --config configs/quickstart.yaml "$@"
