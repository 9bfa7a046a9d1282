"""Entry point: runs the command, and tells a user's mistake, in one line, from a bug, with its traceback."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from importlib.metadata import PackageNotFoundError, metadata, version

from fastcache_xdit.cli.catalogue import COMMANDS
from fastcache_xdit.cli.commands import Group, program
from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.xdit.world import another_ended, check_launcher, is_first_rank, rank

MISTAKE, BUG, UNREAD, INTERRUPTED = 2, 1, 1, 130  # exit codes
OF_THE_DISK = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EIO", "EACCES", "EPERM", "ENOENT", "EISDIR", "ENOTDIR", "ELOOP")
}
REQUEST = "this should not happen; please report it with the traceback above"
REPORTED = ("fastcache_xdit", "torch", "xfuser", "diffusers")  # packages whose versions a report of a bug needs


def entry() -> None:
    """Run this process's command line and exit with its code."""
    sys.exit(main(sys.argv[1:]))


def main(argv: list[str]) -> int:
    """Run one command line and return its exit code: 2 for a user's mistake, 1 for a bug."""
    if argv == ["--version"]:
        if is_first_rank():
            print(f"fastcache_xdit {_version('fastcache_xdit')}")
        return 0
    try:
        check_launcher()
        code = Group("all commands", "COMMAND", COMMANDS, more="; --version prints the version").main(program(), argv)
        sys.stdout.flush()
        return code
    except (Exception, KeyboardInterrupt) as error:
        return _ended_by(error)


def _ended_by(error: BaseException) -> int:
    """Say what ended a command, and return the exit code."""
    if isinstance(error, BrokenPipeError) and _is_unread():
        return UNREAD
    if isinstance(error, OSError) and error.errno in OF_THE_DISK:
        print(f"fastcache_xdit: error: {_refused(error)}", file=sys.stderr)
        return MISTAKE
    if isinstance(error, UsageError | KeyboardInterrupt):
        is_mistake = isinstance(error, UsageError)
        said = f"error: {error}" if is_mistake else "interrupted; what was finished by then is kept"
        if is_first_rank():
            print(f"fastcache_xdit: {said}", file=sys.stderr)
        return MISTAKE if is_mistake else INTERRUPTED
    if another_ended(error):
        print(f"fastcache_xdit: rank {rank()} ends because another one has; that one says why", file=sys.stderr)
        return BUG
    traceback.print_exception(error)
    print(f"fastcache_xdit: {REQUEST}{_where()}", file=sys.stderr)
    return BUG


def _is_unread() -> bool:
    """Return whether nobody reads what is printed, as behind `| head`; the rest of it then goes nowhere."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _refused(error: OSError) -> UsageError:
    """Name the file that the system refuses."""
    advice = "is there room on its disk, and permission; was its folder moved?"
    return UsageError(f"{error.filename or 'a file cannot be written'}: {error.strerror}", advice)


def _where() -> str:
    """Say where to report a bug, as the package's metadata has it, with the versions to name."""
    versions = ", ".join(f"{name} {_version(name)}" for name in REPORTED)
    return f"{_address()} ({versions}, Python {sys.version.split()[0]})"


def _address() -> str:
    try:
        lines = metadata("fastcache_xdit").get_all("Project-URL") or []
    except PackageNotFoundError:
        return ""
    urls = {label: url for label, _, url in (line.partition(", ") for line in lines)}
    url = urls.get("Issues") or urls.get("Repository")
    return f" at {url}" if url else ""


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(not installed)"
