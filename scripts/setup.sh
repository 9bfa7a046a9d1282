# shellcheck shell=bash
# Sourced by the other scripts: makes .venv in the project with all that it needs, or activates the one that is there.
# FASTCACHE_PYTHON names the interpreter (3.10 or newer), default python3.

TORCH="torch==2.13.0"  # named before everything else: a looser range would let pip fetch a second build of it

wanted="$(cat setup.py pyproject.toml | cksum) $TORCH"
if [ ! -f .venv/.ready ] || [ "$(cat .venv/.ready)" != "$wanted" ]; then
  echo "setting up .venv (minutes, once)"
  "${FASTCACHE_PYTHON:-python3}" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check "$TORCH"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
  echo "$wanted" > .venv/.ready
fi
# shellcheck source=/dev/null
. .venv/bin/activate
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # one thread a rank: the ranks share the cores
