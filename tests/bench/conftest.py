"""Benchmarks start xDiT's process groups in the process of the tests; none is left for the tests that follow."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch.distributed


@pytest.fixture(scope="package", autouse=True)
def no_groups_are_left() -> Iterator[None]:
    yield
    if not torch.distributed.is_initialized():
        return
    from xfuser.core.distributed import parallel_state, runtime_state

    parallel_state.destroy_model_parallel()
    parallel_state.destroy_distributed_environment()
    parallel_state._DIT = None
    runtime_state._RUNTIME = None
