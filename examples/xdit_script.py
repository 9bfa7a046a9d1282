"""A script that calls xDiT itself, with FastCache as one of xDiT's cache methods.

    torchrun --nproc_per_node 2 examples/xdit_script.py --ulysses_degree 2 --cache fastcache

All flags are xDiT's own; `--cache_config FILE.yaml` takes options of FastCache. The first requests are computed in
full, to learn from; `--cache_config '{"learn": 0}'` skips steps at once. Writes xdit_script.png.
"""

import sys

import torch

from fastcache_xdit import register
from fastcache_xdit.shipped import generation_defaults, model_path

register()  # before xfuser is imported; also lets xDiT run where there is no GPU

from xfuser import xFuserArgs, xFuserPixArtAlphaPipeline  # noqa: E402
from xfuser.config import FlexibleArgumentParser  # noqa: E402

from fastcache_xdit.plugin import applied  # noqa: E402

MODEL, PROMPT = "shapes-pixart", "a pink square left of an orange circle on a dark background"

parser = xFuserArgs.add_cli_args(FlexibleArgumentParser())
flags = parser.parse_args(["--model", str(model_path(MODEL)), *sys.argv[1:]])
engine_config, _ = xFuserArgs.from_cli_args(flags).create_config()
engine_config.runtime_config.dtype = torch.float32  # the model's, and the right one on a CPU

pipe = xFuserPixArtAlphaPipeline.from_pretrained(flags.model, engine_config=engine_config)
pipe.set_progress_bar_config(disable=True)
output = pipe(PROMPT, generator=torch.Generator().manual_seed(0), **generation_defaults(MODEL))

if pipe.is_dp_last_group():  # the rank that holds the picture
    output.images[0].save("xdit_script.png")
    for handle in applied():  # one for each pipeline that xDiT put the cache on
        print(handle.report())
torch.distributed.barrier()
torch.distributed.destroy_process_group()
