# shellcheck shell=bash
# Sourced by the other scripts: makes .venv in the project, or activates the one that is there.
#
#   . scripts/setup.sh [EXTRAS]    what pyproject.toml asks for, and these of its extras, such as dev; default: none
#
# FASTCACHE_PYTHON names the interpreter (3.10 or newer), default python3.

TORCH="torch==2.13.0"  # named before everything else: a looser range would let pip fetch a second build of it

extras=${1-}
wanted="$(cat setup.py pyproject.toml | cksum) $TORCH"
stamp=".venv/.ready${extras:+-$extras}" # one for each set of extras, since one can be there without the other
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
  echo "setting up .venv${extras:+ with $extras} (minutes, once)"
  "${FASTCACHE_PYTHON:-python3}" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check "$TORCH"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".${extras:+[$extras]}"
  echo "$wanted" > "$stamp"
  echo "$wanted" > .venv/.ready # whoever has extras has all that goes without them
fi
# shellcheck source=/dev/null
. .venv/bin/activate
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"  # one thread a rank: the ranks share the cores
