"""calibrate and tune from Python, on whatever a pipeline makes, and on a loop that has no pipeline."""

from __future__ import annotations

from types import SimpleNamespace

import diffusers
import pytest
import torch
import yaml

from fastcache_xdit import FastCacheConfig, UsageError, calibrate, fastcache, tune
from fastcache_xdit.approx.calibration import Calibration
from fastcache_xdit.decision.schedule import uniform_mask
from fastcache_xdit.tuning.calls import PipelineCall
from tests import tiny
from tests.models.unknown import UNKNOWN

PIXELS, STEPS = 64, 8
SIGMAS = [1 - step / STEPS for step in range(STEPS)]


def texts(family: str, seed: int, *without: str) -> dict:
    """Arguments of a call, without some."""
    arguments = tiny.call_arguments(family, seed, pixels=PIXELS)
    return {name: value for name, value in arguments.items() if name not in ("output_type", *without)}


def picture(seed: int) -> torch.Tensor:
    return torch.rand(1, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(seed))


def image_to_image():
    """Three quarters of 12 steps are taken; the noise comes from generators."""
    pipe = diffusers.StableDiffusion3Img2ImgPipeline(**tiny.pipeline("sd3").components)
    settings = {"num_inference_steps": 12, "strength": 0.75}
    seeds = [torch.Generator().manual_seed(seed) for seed in range(3)]
    calls = [
        {**texts("sd3", seed, "latents"), "image": picture(seed), "generator": seeds[seed], **settings}
        for seed in range(3)
    ]
    return pipe, calls, 9


def inpainting():
    """Without a generator the numbers of the calls are their seeds."""
    parts = tiny.pipeline("flux").components
    pipe = diffusers.FluxInpaintPipeline(**parts)
    mask = torch.zeros(1, 1, PIXELS, PIXELS)
    mask[..., : PIXELS // 2] = 1
    settings = {"num_inference_steps": STEPS, "strength": 1.0, "mask_image": mask}
    calls = [{**texts("flux", seed, "latents"), "image": picture(seed), **settings} for seed in range(3)]
    return pipe, calls, STEPS


def controlnet():
    pipe = tiny.pipeline("sd3")
    with tiny.seeded(3):
        net = diffusers.SD3ControlNetModel.from_config({**pipe.transformer.config, "num_layers": 2}).eval()
        for layer in net.controlnet_blocks:
            torch.nn.init.normal_(layer.weight, std=0.1)
    pipe = diffusers.StableDiffusion3ControlNetPipeline(**pipe.components, controlnet=net)
    calls = [{**texts("sd3", seed), "control_image": picture(seed), "num_inference_steps": STEPS} for seed in range(3)]
    return pipe, calls, STEPS


def video():
    calls = [{**texts("wan", seed), "num_inference_steps": STEPS, "guidance_scale": 3.0} for seed in range(3)]
    return tiny.pipeline("wan"), calls, STEPS


def no_entry():
    """A model that the catalogue does not have."""
    torch.manual_seed(0)
    pipe, call = UNKNOWN["LTX-Video"]()
    noise = [torch.Generator().manual_seed(seed) for seed in range(3)]
    calls = [{**call, "generator": generator, "num_inference_steps": STEPS} for generator in noise]
    return pipe, calls, STEPS


def own_loop():
    """Two calls a step around a bare transformer, with no scheduler."""
    model = tiny.transformer("sd3")
    return model, [loop(model, seed) for seed in range(3)], STEPS


def loop(model, seed):
    both = [tiny.forward_arguments("sd3", seed + 10 * branch, batch=1, pixels=PIXELS) for branch in range(2)]

    def run(branch):
        latents = torch.randn(both[0]["hidden_states"].shape)  # seeded by whoever calls
        with torch.no_grad():
            for sigma, following in zip(SIGMAS, [*SIGMAS[1:], 0.0], strict=True):
                outputs = []
                for name, text in zip(("cond", "uncond"), both, strict=True):
                    with branch(name):
                        call = {**text, "hidden_states": latents, "timestep": torch.tensor([1000 * sigma])}
                        outputs.append(model(**call, return_dict=False)[0])
                latents = latents + (following - sigma) * torch.lerp(outputs[1], outputs[0], 2.0)
        return latents

    return run


SUBJECTS = [image_to_image, inpainting, controlnet, video, no_entry, own_loop]


@pytest.mark.parametrize("made", SUBJECTS, ids=lambda made: made.__name__)
def test_anything_is_calibrated_and_tuned(made, tmp_path):
    pipe, calls, steps = made()
    sigmas = SIGMAS if made is own_loop else None
    if hasattr(pipe, "set_progress_bar_config"):
        pipe.set_progress_bar_config(disable=True)
    path, told = tmp_path / "cal.safetensors", []
    found = calibrate(pipe, calls, output=path, lead_blocks=[0], sigmas=sigmas, report=lambda *part: told.append(part))
    assert len(found.sigmas) == steps and told[-1][1] == told[-1][2] == len(told)
    assert [each.name for each in tmp_path.iterdir()] == ["cal.safetensors"]
    assert Calibration.load(path).facts["guidance"] == found.facts["guidance"]
    options = {"target": "budget=0.5", "evaluations": 6, "sigmas": sigmas}
    tuned = tune(pipe, calls, calibration=path, output=tmp_path / "half.yaml", refit_calls=calls, **options)
    (trial,) = tuned.trials
    assert len(trial.mask) == steps and trial.compute_ratio <= 0.5
    even = max(each.psnr_db for each in tuned.tried[steps] if each.mask == uniform_mask(steps, steps // 2))
    assert trial.psnr_db >= even > 20

    config = FastCacheConfig.from_file(tmp_path / "half.yaml")
    assert config.schedule == {steps: trial.mask}
    with fastcache(pipe, config, sigmas=sigmas) as handle:
        calls[0](handle.branch) if callable(calls[0]) else pipe(**calls[0])
        counters = handle.report().counters
    assert counters.bypassed_calls == 0 and counters.approximated.total() > 0


def test_what_is_written_is_what_is_returned(tmp_path):
    """A calibration at hand needs no file, and the config works with it."""
    pipe, calls, _ = video()
    found = calibrate(pipe, calls, lead_blocks=[0])
    (guidance,) = found.facts["guidance"]
    assert guidance["parts"] == ["cond", "uncond"]
    assert guidance["weights"] == pytest.approx([3.0, -2.0], abs=1e-3)
    tuned = tune(pipe, calls, calibration=found, target="budget=0.5", evaluations=1, steps=[8, 10])
    assert sorted(tuned.config.schedule) == [8, 10] and tuned.config.calibration is None
    with fastcache(pipe, tuned.config, calibration=tuned.calibration) as handle:
        pipe(**calls[0])
        assert handle.report().counters.approximated.total() > 0
    with pytest.raises(UsageError, match="give calibration as a path"):
        tune(pipe, calls, calibration=found, target="budget=0.5", output=tmp_path / "half.yaml")


def test_a_call_begins_from_the_same_noise_each_time():
    generator = torch.Generator().manual_seed(5)
    torch.randn(3, generator=generator)
    before = generator.get_state()
    call = PipelineCall({"generator": [generator, torch.Generator().manual_seed(6)], "num_inference_steps": 2}, 0)
    first, second = ([torch.randn(2, generator=each) for each in call.generator()] for _ in range(2))
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(torch.randn(2, generator=generator), first[0])
    again = call.changed(num_inference_steps=4)
    assert again.steps == 4 and torch.equal(torch.randn(2, generator=again.generator()[0]), first[0])


def test_a_pipeline_that_a_loop_of_ones_own_runs():
    """Its scheduler says what the steps are, and how guidance combines what two calls give."""
    pipe = tiny.pipeline("sd3")
    target = SimpleNamespace(transformer=pipe.transformer, scheduler=pipe.scheduler)

    def run(seed):
        both = [tiny.forward_arguments("sd3", seed + 10 * branch, batch=1, pixels=PIXELS) for branch in range(2)]
        latents = torch.randn(both[0]["hidden_states"].shape, generator=torch.Generator().manual_seed(seed))
        pipe.scheduler.set_timesteps(STEPS)
        with torch.no_grad():
            for timestep in pipe.scheduler.timesteps:
                call = {name: torch.cat([text[name] for text in both]) for name in both[0]}
                call |= {"hidden_states": torch.cat([latents] * 2), "timestep": timestep.expand(2)}
                cond, uncond = pipe.transformer(**call, return_dict=False)[0].chunk(2)
                latents = pipe.scheduler.step(torch.lerp(uncond, cond, 4.0), timestep, latents).prev_sample
        return latents

    found = calibrate(target, [lambda _, seed=seed: run(seed) for seed in range(3)], lead_blocks=[0])
    (guidance,) = found.facts["guidance"]
    assert guidance["parts"] == ["fused first half", "fused second half"]
    assert guidance["weights"] == pytest.approx([4.0, -3.0], abs=1e-3)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"calls": []}, "0 calls are too few; give 3 or more"),
        ({"calls": {"prompt": "x"}}, "calls are a list"),
        ({"calls": ["x"] * 3}, "a dict of arguments, or a function that runs a loop, not str"),
        ({"calls": [{"prompt": "x"}] * 3}, "cannot be called with a pipeline's arguments"),
        ({"sigmas": None}, "nothing says what the steps of a loop are"),
        ({"sigmas": [1000.0, 500.0]}, "falling from 1 towards 0"),
        ({"sigmas": [*SIGMAS, 0.0]}, "8 steps were taken where 9 were announced"),
        ({"sigmas": [1.0, 0.5]}, "2 steps are too few"),
        ({"calls": [lambda branch: None] * 3}, "must return its final latents"),
    ],
)
def test_mistakes_are_told(change, told):
    model, loops, _ = own_loop()
    options = {"calls": loops, "sigmas": SIGMAS} | change
    with pytest.raises(UsageError, match=told):
        calibrate(model, options.pop("calls"), lead_blocks=[0], **options)


def test_only_a_pipelines_calls_are_trained_through():
    model, loops, _ = own_loop()
    with pytest.raises(UsageError, match="polish trains through the calls of a pipeline"):
        tune(model, loops, calibration="none", target="budget=0.5", sigmas=SIGMAS, refit_calls=loops, polish=1)


def test_sigmas_beside_a_scheduler_are_refused():
    pipe, calls, _ = video()
    with pytest.raises(UsageError, match="the scheduler knows them"):
        calibrate(pipe, calls, sigmas=SIGMAS)


def test_files_are_small_yaml(tmp_path):
    pipe, calls, _ = video()
    calibrate(pipe, calls, output=tmp_path / "cal.safetensors", lead_blocks=[0])
    tuned = tune(pipe, calls, calibration=tmp_path / "cal.safetensors", target="budget=0.5", evaluations=1)
    tuned.save(tmp_path / "presets" / "half.yaml", tmp_path / "cal.safetensors", "Half")
    values = yaml.safe_load((tmp_path / "presets" / "half.yaml").read_text())
    assert values["calibration"] == "../cal.safetensors" and values["schedule"] == tuned.config.schedule
