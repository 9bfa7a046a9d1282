"""Noise levels are read from schedulers that count otherwise than from 1000 down to 0."""

from __future__ import annotations

import diffusers
import pytest

from fastcache_xdit.host.listening import levels_of

STEPS = 6
COUNTED = {
    "Euler, rising": diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
    "EDM, logarithms": diffusers.EDMEulerScheduler(),
    "EDM DPM++, logarithms": diffusers.EDMDPMSolverMultistepScheduler(),
    "SCM, the end among the timesteps": diffusers.SCMScheduler(),
    "DDIM, a last step at 0": diffusers.DDIMScheduler(),
}


@pytest.mark.parametrize("name", COUNTED)
def test_levels_fall_from_1_to_0_one_for_each_step(name):
    scheduler = COUNTED[name]
    scheduler.set_timesteps(STEPS, **({"intermediate_timesteps": None} if "SCM" in name else {}))
    levels = levels_of(scheduler)
    assert len(levels) == STEPS
    assert levels == sorted(levels, reverse=True) and 0 <= levels[-1] < levels[0] <= 1


def test_a_timestep_that_is_taken_twice_is_two_steps():
    scheduler = diffusers.PNDMScheduler(skip_prk_steps=True)
    scheduler.set_timesteps(STEPS)
    assert len(levels_of(scheduler)) == STEPS + 1
