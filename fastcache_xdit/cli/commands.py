"""Commands under one word: what each one does, and the one that was asked for."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.xdit.world import is_first_rank

Main = Callable[[list[str]], int]  # (words behind the command's name) -> exit code


class Command(NamedTuple):
    """One command: what it does, in one line for `--help`, and its function."""

    about: str
    main: Main


def no_action(word: str, actions: Mapping[str, Command]) -> Callable[[list[str]], UsageError]:
    """Return what makes the error for a command `word` that is given none of its actions."""
    advice = f"{word} ACTION --help lists its options"
    return lambda argv: UsageError(f"which action? give one of {', '.join(actions)}", advice)


@dataclass(frozen=True)
class Group:
    """Commands under one word, of which a command line names one.

    Attributes:
        prog: what stands before the command's name.
        kind: what a command is called in the help, such as `ACTION`.
        commands: each command by name.
        mistake: makes the error for words that begin with no command's name.
    """

    prog: str
    kind: str
    commands: Mapping[str, Command]
    mistake: Callable[[list[str]], UsageError]

    def main(self, argv: list[str]) -> int:
        """Run the command that `argv` begins with and return its exit code; `--help` lists all of them.

        Raises:
            UsageError: no such command, or what the command raises.
        """
        if argv and argv[0] in self.commands:
            return self.commands[argv[0]].main(argv[1:])
        if argv and argv[0] in ("-h", "--help"):
            if is_first_rank():
                self._parser().print_help()
            return 0
        raise self.mistake(argv)

    def _parser(self) -> argparse.ArgumentParser:
        """Make a parser for the help alone; a command builds its own once it is chosen, because xDiT's is slow."""
        listed = argparse.ArgumentParser(
            prog=self.prog,
            usage=f"{self.prog} {self.kind} [options]",
            epilog=f"{self.kind} --help lists its options",
            add_help=False,
        )
        group = listed.add_argument_group(f"{self.kind.lower()}s")
        for name, command in self.commands.items():
            group.add_argument(name, help=command.about)
        return listed
