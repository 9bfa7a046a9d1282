#!/usr/bin/env bash
# Submits a command to SLURM; each node starts its ranks with scripts/torchrun.sh.
#
#   bash scripts/slurm.sh [options] COMMAND [its options]
#
#   --nodes N, --ranks N       default 1; ranks per node
#   --gpus N                   per node; default: one for each rank
#   --cores N                  CPU cores of each rank; default 4
#   --time T                   limit, as sbatch takes it; default 01:00:00
#   --partition P, --account A, --job NAME
#   --dry-run                  print what would be submitted
#
# Ranks get SIGTERM two minutes before the limit. A preempted `batch run` is queued again and goes on where it was.
# For example, with paths from the project's folder, which all nodes must share:
#   bash scripts/slurm.sh --ranks 8 --time 08:00:00 batch run JOB --data_parallel_degree 8
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/launch.sh

declare -A option=([--ranks]=1 [--nodes]=1 [--gpus]="" [--cores]=4 [--time]=01:00:00
  [--partition]="" [--account]="" [--job]=fastcache)
read_arguments "$@"
require sbatch "submit from a login node of the cluster"

devices=$(gpus)
cores=$((option[--cores] * option[--ranks]))
directives=(--job-name="${option[--job]}" --nodes="${option[--nodes]}" --ntasks-per-node=1 --cpus-per-task="$cores"
  --time="${option[--time]}" --signal=TERM@120)
[[ $devices == 0 ]] || directives+=(--gpus-per-node="$devices")
for name in partition account; do
  [[ -z ${option[--$name]} ]] || directives+=("--$name=${option[--$name]}")
done
[[ ${command[0]} != batch ]] || directives+=(--requeue --open-mode=append)

send_document sbatch << END
#!/usr/bin/env bash
$(printf '#SBATCH %s\n' "${directives[@]}")
set -euo pipefail
first=\$(scontrol show hostnames "\$SLURM_JOB_NODELIST" | sed -n 1p)
srun --cpus-per-task=$cores --kill-on-bad-exit=1 bash scripts/torchrun.sh \\
  --nodes ${option[--nodes]} --ranks ${option[--ranks]} \\
  --rendezvous "\$first:\$((20000 + SLURM_JOB_ID % 10000))" --job "\$SLURM_JOB_ID" \\
  $(quoted "${command[@]}")
END
