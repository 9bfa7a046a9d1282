"""Pictures of any model are scored; by the shapes classifier only those that it knows."""

from types import SimpleNamespace

import pytest
import torch

from fastcache_xdit.bench.peers.score import score
from fastcache_xdit.host.xdit.engine import Request


@pytest.mark.parametrize("side, prompt", [(64, "a red circle on a dark background"), (128, "a lighthouse in a storm")])
def test_pictures_of_a_model_of_ones_own(side, prompt):
    pictures, latents = torch.rand(2, 3, side, side), torch.rand(2, 4, side // 8, side // 8)
    clean = SimpleNamespace(clean=[latents] * 4)
    sample = SimpleNamespace(pictures=pictures, latents=latents, tape=clean)
    vae = SimpleNamespace(decode=lambda _: pytest.fail("nothing to decode for"))
    scores = score(SimpleNamespace(vae=vae), [(Request(0, prompt, 0), Request(1, prompt, 1))], sample, sample)
    assert scores.psnr_db == 100 and scores.latent_error == 0
    assert scores.classifier_frechet is None and scores.classifier_t_frechet is None


def test_the_fifth_percentile_lies_between_the_worst_picture_and_the_mean():
    pictures = torch.zeros(21, 3, 64, 64)
    sample = SimpleNamespace(pictures=pictures + torch.linspace(0.01, 0.3, 21).view(-1, 1, 1, 1), latents=None)
    batch = tuple(Request(number, "a lighthouse", number) for number in range(21))
    scores = score(None, [batch], sample, SimpleNamespace(pictures=pictures, latents=None))
    second_worst = -20 * torch.linspace(0.01, 0.3, 21)[-2].log10().item()
    assert scores.psnr_db_min < scores.psnr_db_p5 < scores.psnr_db
    assert scores.psnr_db_p5 == pytest.approx(second_worst)
