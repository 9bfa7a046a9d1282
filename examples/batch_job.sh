#!/usr/bin/env bash
# Many pictures as a job that survives crashes: whatever dies, run the same line again and it goes on.
#
#   bash examples/batch_job.sh [FOLDER]
set -euo pipefail
job=${1:-my-job}

# What a line leaves out comes from the options of `submit` below; .txt, .csv and .parquet work as well.
cat > "$job-prompts.jsonl" << 'END'
{"prompt": "a red circle on a dark background"}
{"prompt": "a blue square left of a pink triangle on a light background", "seed": 7, "guidance": 3.0}
{"prompt": "a green triangle on a light background", "steps": 30}
{"prompt": "a small cyan circle above a purple square on a dark background", "negative_prompt": "a triangle"}
END

python -m fastcache_xdit batch submit "$job" --model shapes-pixart --prompts "$job-prompts.jsonl" --cache fastcache

# Two ranks as two replicas, which take items as they get done with others. Other layouts: --ulysses_degree 2 ...
torchrun --standalone --nproc_per_node 2 -m fastcache_xdit batch run "$job" --data_parallel_degree 2

# At any time, `python -m fastcache_xdit batch status "$job"` says how far it is. In the end, one line for each picture:
python -m fastcache_xdit batch export "$job" --output "$job.csv"
