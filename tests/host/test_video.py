"""Videos as pictures."""

import torch
from PIL import Image

from fastcache_xdit.host.xdit import loading
from fastcache_xdit.host.xdit.video import pictures
from fastcache_xdit.plugin import register
from fastcache_xdit.shipped import model_path


def test_frames_lie_side_by_side_and_latents_stay():
    colours = ((10, 0, 0), (0, 20, 0), (0, 0, 30))
    (whole,) = pictures([[Image.new("RGB", (4, 6), colour) for colour in colours]])
    assert whole.size == (12, 6)
    assert [whole.getpixel((4 * place + 3, 5)) for place in range(3)] == list(colours)
    latents = torch.randn(2, 4, 3, 5, 5)
    assert all(torch.equal(one, same) for one, same in zip(pictures(latents), latents, strict=True))


def test_a_transformer_that_xdits_own_option_leaves_out_is_compiled():
    register()
    for is_asked in (True, False):
        options = loading.xdit_options({"use_torch_compile": is_asked})
        pipe = loading.load_pipeline(str(model_path("shapes-video")), options, "float32")
        assert (pipe.transformer._compiled_call_impl is not None) is is_asked
