#!/usr/bin/env bash
# Runs a command on the ranks of this machine, or as one of several nodes that meet at HOST:PORT.
#
#   bash scripts/torchrun.sh [options] COMMAND [its options]
#
#   --ranks N               per node, one for each GPU; default 1
#   --nodes N               default 1; start the same line on each of them
#   --rendezvous HOST:PORT  of one of the nodes, where all can reach it
#   --job ID                the same on all nodes, another for each job that meets there; default fastcache
#   --dry-run               print what would run
#
# For example, with paths from the project's folder:
#   bash scripts/torchrun.sh --ranks 4 generate --config configs/models/flux1-dev.yaml --prompts FILE
#   bash scripts/torchrun.sh --nodes 2 --ranks 8 --rendezvous node0:29500 generate ...
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/launch.sh

declare -A option=([--ranks]=1 [--nodes]=1 [--rendezvous]="" [--job]=fastcache)
read_arguments "$@"
require torchrun "run bash scripts/setup.sh, or activate the environment that has it"

meet=(--standalone)
if [[ ${option[--nodes]} -gt 1 ]]; then
  [[ ${option[--rendezvous]} =~ ^[^:]+:[0-9]+$ ]] || fail "--nodes ${option[--nodes]} needs --rendezvous HOST:PORT"
  meet=(--nnodes "${option[--nodes]}" --rdzv_backend c10d
    --rdzv_endpoint "${option[--rendezvous]}" --rdzv_id "${option[--job]}")
fi
# One thread a rank: ranks on a CPU share its cores.
send env OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" torchrun "${meet[@]}" --nproc_per_node "${option[--ranks]}" \
  -m fastcache_xdit "${command[@]}"
