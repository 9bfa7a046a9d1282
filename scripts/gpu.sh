#!/usr/bin/env bash
# Tries on a machine with an NVIDIA GPU what elsewhere can only be tried on its CPU; at most 8 minutes.
#
#   bash scripts/gpu.sh [--device DEVICE] [--ranks N] [--output FOLDER]
#
#   --device DEVICE   cuda; or cpu, which runs every part at a tiny size, to try the script itself
#   --ranks N         also run the checks of several ranks: over NCCL on N GPUs, over Gloo where they share one
#   --output FOLDER   default results/gpu
#
# Part by part: the environment, tests/gpu, bench speed on three models of published sizes, bench peers. All that a part
# prints is kept in FOLDER/PART.log, as it is printed. A part that went well is not run again, so that the same line goes
# on after an interruption; another folder begins anew. The exit code is 1 where a part failed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

fail() {
  echo "gpu.sh: $*" >&2
  exit 2
}

device=cuda ranks=1 output=results/gpu
while [[ $# -gt 0 ]]; do
  case $1 in
    --device | --ranks | --output) [[ $# -gt 1 ]] || fail "$1 needs a value" ;;
    *) fail "unknown option $1; options: --device --ranks --output" ;;
  esac
  declare "${1#--}=$2"
  shift 2
done
[[ $device =~ ^(cuda|cpu)$ ]] || fail "--device $device is not possible; give cuda or cpu"
[[ $ranks =~ ^[1-9][0-9]*$ ]] || fail "--ranks $ranks is not possible; give 1 or more"
python=$(command -v .venv/bin/python || command -v python3)
mkdir -p "$output"
export FASTCACHE_HOME="$PWD/results/gpu-home" OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

failed=0
# part NAME SECONDS COMMAND...: runs a part within its time, unless it went well before.
part() {
  local name=$1 seconds=$2 start=$SECONDS
  shift 2
  if [[ -f $output/$name.done ]]; then
    echo "== $name: done before"
    return
  fi
  echo "== $name: $*"
  if timeout --kill-after 10 "$((seconds * patience))" "$@" 2>&1 | tee "$output/$name.log"; then
    touch "$output/$name.done"
    echo "== $name: went well in $((SECONDS - start)) s"
  else
    failed=1
    echo "== $name: FAILED after $((SECONDS - start)) s; see $output/$name.log"
  fi
}

# shellcheck disable=SC2016  # the other shell expands it
environment='nvidia-smi; "$0" -m pip list --disable-pip-version-check; "$0" -m fastcache_xdit doctor'

patience=1 sizes=() tests=() peers=(--model shapes-pixart --quick) caches=("even masks" pooled)
if [[ $device == cpu ]]; then
  patience=20 sizes=(--tiny --repetitions 1) tests=(-k "pixart and float32") caches=(pooled)
  peers+=(--count 1 --batch_size 1 --repetitions 1 --num_inference_steps 6 --only pooled)
  export FASTCACHE_TEST_DEVICE=cpu
else
  export FASTCACHE_TEST_DEVICE=cuda
  sizes=(--repetitions 2) peers+=(--only FastCache "fewer steps")
fi

part environment 40 bash -c "$environment" "$python"
part tests 120 "$python" -m pytest tests/gpu --ignore tests/gpu/test_ranks.py "${tests[@]}"
for model in flux.1-dev wan2.1-1.3b hunyuanvideo; do
  part "speed-$model" 75 "$python" -m fastcache_xdit bench speed --architecture "$model" \
    --only "${caches[@]}" --output "$output" "${sizes[@]}"
done
part peers 90 "$python" -m fastcache_xdit bench peers --output "$output/peers" "${peers[@]}"
if [[ $ranks -gt 1 ]]; then
  export FASTCACHE_TEST_RANKS=$ranks
  part ranks 120 "$python" -m pytest tests/gpu/test_ranks.py
fi
exit $failed
