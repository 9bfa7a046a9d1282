#!/usr/bin/env bash
# Submits a command as a job to a Ray cluster: run and generate with all ranks on one node, batch run on many.
#
#   bash scripts/ray.sh [options] COMMAND [its options]
#
#   --address URL  of the cluster's dashboard; default http://127.0.0.1:8265
#   --ranks N      on the node that Ray chooses; not for batch run, which places its own replicas
#   --gpus N       default: one for each rank
#   --dry-run      print what would be submitted
#
# The cluster's Python needs what this project needs; its code is taken from here. A batch job's folder lies on the
# head node, so its path is absolute. For example:
#   bash scripts/ray.sh --address http://head:8265 batch run /data/jobs/mine --replicas 4
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/launch.sh

declare -A option=([--address]=http://127.0.0.1:8265 [--ranks]=1 [--gpus]="")
read_arguments "$@"
[[ ${option[--address]} =~ ^https?://[^:/]+(:[0-9]+)?$ ]] ||
  fail "--address ${option[--address]} is no dashboard; give http://HOST:8265"
require ray "run pip install 'ray[default]'"

submit=(ray job submit --address "${option[--address]}" --working-dir .)
if [[ ${command[0]} == batch ]]; then
  [[ ${option[--ranks]} == 1 ]] || fail "batch run places its own ranks; give --replicas and degrees behind it"
  [[ " ${command[*]} " == *" --ray "* ]] || command+=(--ray auto)
  send "${submit[@]}" -- python -m fastcache_xdit "${command[@]}"
else
  devices=$(gpus)
  send "${submit[@]}" --entrypoint-num-gpus "$devices" -- \
    bash scripts/torchrun.sh --ranks "${option[--ranks]}" "${command[@]}"
fi
