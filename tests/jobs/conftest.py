"""The run that disturbed ones are compared with."""

from __future__ import annotations

import pytest

from tests.jobs.launching import COUNT, launched, submit, told


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """A job that one process finished in one go."""
    job = submit(tmp_path_factory.mktemp("undisturbed") / "job", COUNT)
    with launched(0, str(job.folder)) as process:
        assert f"{COUNT} of {COUNT} images done, hit rate" in told(process)
    assert process.returncode == 0
    return job
