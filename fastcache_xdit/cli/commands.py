"""Commands and groups of them: help and misspelt options are answered before anything slow is imported."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastcache_xdit.cli.options.usual import add_usual
from fastcache_xdit.cli.options.values import check_values
from fastcache_xdit.errors import UsageError
from fastcache_xdit.host.xdit import flags
from fastcache_xdit.host.xdit.world import is_first_rank
from fastcache_xdit.options import unknown_option

HELP, HELP_XDIT = ("-h", "--help"), "--help-xdit"
SCRIPT = "fastcache-xdit"
ADVICE = "--help lists the options"


def program() -> str:
    """Return what users type to start this process's program."""
    return SCRIPT if Path(sys.argv[0]).name == SCRIPT else "python -m fastcache_xdit"


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        about: what it does, in one line.
        run: module of `cli` and function that carries it out, words -> exit code; imported when it is called.
        options: module of `cli.options` and function that adds its own options to a parser.
        xdit: whose flags it takes beside them, a kind of `host.xdit.flags`; empty for none.
        makes: whether it makes pictures, and so takes prompts, sizes and steps of xDiT's.
        prepares: whether it needs xDiT imported, which takes seconds.
        refuses: as `options`, those that the command knows only to say why it does not take them; empty for none.
    """

    about: str
    run: str
    options: str
    xdit: str = ""
    makes: bool = True
    prepares: bool = True
    refuses: str = ""

    def main(self, prog: str, argv: list[str]) -> int:
        """Run the command and return its exit code.

        Raises:
            UsageError: an option that does not exist, or what the command raises.
        """
        own = self._parser(prog)
        if any(word in HELP for word in argv):
            _print(own.format_help())
            return 0
        self._check(own, argv)
        check_values(own, self.xdit, argv)
        if self.prepares:
            _imported("fastcache_xdit.host.xdit.loading.prepare")()  # before libraries read their settings
        if HELP_XDIT in argv:
            _print(_imported("fastcache_xdit.cli.pipeline.xdit_help")(prog, self.xdit))
            return 0
        return int(_imported(f"{__package__}.{self.run}")(argv))

    def _parser(self, prog: str) -> argparse.ArgumentParser:
        """Make a parser of the command's own options, for the help and for the names."""
        parser = argparse.ArgumentParser(prog=prog, description=f"{self.about}.", add_help=False)
        own = parser.add_argument_group("options")
        _adder(self.options)(own)
        places = [f"{action.metavar or action.dest} " for action in own._group_actions if not action.option_strings]
        parser.usage = f"{prog} {''.join(places)}[options]"
        if self.xdit:
            add_usual(parser.add_argument_group("options of xDiT's that are needed most"), self.makes)
            parser.epilog = f"{HELP_XDIT} lists all options of xDiT's, which this command takes as well"
        return parser

    def _check(self, own: argparse.ArgumentParser, argv: list[str]) -> None:
        """Raise UsageError for an option that neither the command nor xDiT has; a beginning of one is fine."""
        theirs = flags.names(self.xdit) if self.xdit else set()
        if self.xdit and not theirs:
            return  # what xDiT takes cannot be told without it
        known = theirs | {*own._option_string_actions, *_names(self.refuses), *([HELP_XDIT] if self.xdit else ())}
        for word in argv:
            name = word.partition("=")[0]
            spelt = f"--{name[2:].replace('-', '_')}" if self.xdit else name
            if name.startswith("--") and not any(flag.startswith((name, spelt)) for flag in known):
                raise unknown_option(name, known, ADVICE)


@dataclass(frozen=True)
class Group:
    """Commands under one word, of which a command line names one.

    Attributes:
        about: what they are for, in one line.
        kind: what one of them is called in the help, such as `ACTION`.
        commands: each of them by name.
        more: what the help says at its end.
    """

    about: str
    kind: str
    commands: Mapping[str, Command | Group]
    more: str = ""

    def main(self, prog: str, argv: list[str]) -> int:
        """Run the command that `argv` begins with and return its exit code; `--help` lists all of them.

        Raises:
            UsageError: no such command, or what the command raises.
        """
        if argv and argv[0] in self.commands:
            return self.commands[argv[0]].main(f"{prog} {argv[0]}", argv[1:])
        if argv and argv[0] in HELP:
            _print(self._help(prog))
            return 0
        raise self._mistake(prog, argv)

    def _mistake(self, prog: str, argv: list[str]) -> UsageError:
        kind, names = self.kind.lower(), ", ".join(self.commands)
        if not argv:
            return UsageError(f"which {kind}? give one of {names}", f"{prog} {self.kind} --help lists its options")
        error = unknown_option(argv[0], self.commands, f"{kind}s: {names}")
        return UsageError(error.problem.replace("option", kind), error.advice)

    def _help(self, prog: str) -> str:
        listed = argparse.ArgumentParser(
            prog=prog,
            usage=f"{prog} {self.kind} [options]",
            epilog=f"{self.kind} --help lists its options{self.more}",
            add_help=False,
        )
        group = listed.add_argument_group(f"{self.kind.lower()}s")
        for name, command in self.commands.items():
            group.add_argument(name, help=command.about.replace("%", "%%"))
        return listed.format_help()


def _print(text: str) -> None:
    if is_first_rank():
        print(text, end="")


def _names(options: str) -> set[str]:
    """Name the options that a function of `cli.options` adds."""
    parser = argparse.ArgumentParser(add_help=False)
    if options:
        _adder(options)(parser)
    return {*parser._option_string_actions}


def _adder(place: str) -> Any:
    return _imported(f"{__package__}.options.{place}")


def _imported(place: str) -> Any:
    """Return what a dotted name names."""
    module, _, name = place.rpartition(".")
    return getattr(importlib.import_module(module), name)
