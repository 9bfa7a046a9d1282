"""The undo log: every change to an object that is not ours goes through it and can be taken back."""

from __future__ import annotations

import contextlib
from typing import Any

from fastcache_xdit.errors import RestoreError

_ABSENT = object()


class Undo(contextlib.ExitStack):
    """A log of attribute changes on instances, modules or classes; closing it takes them back, the last one first.

    >>> with Undo() as undo:
    ...     undo.set(block, "forward", stand_in)
    """

    def set_class(self, target: Any, kind: type) -> None:
        """Make `target` an instance of `kind`, a subclass of its class; closing the log takes that back."""
        old = type(target)
        object.__setattr__(target, "__class__", kind)
        self.callback(_put_class_back, target, kind, old)

    def set(self, target: Any, name: str, value: Any) -> None:
        """Set `target.name = value`; closing the log restores or deletes the attribute.

        Instances use `object.__setattr__`, because `nn.Module.__setattr__` would register modules and parameters
        elsewhere. Classes do not allow that and are set the ordinary way.
        """
        old = vars(target).get(name, _ABSENT)
        _assign(target, name, value)
        self.callback(_put_back, target, name, value, old)


def _assign(target: Any, name: str, value: Any) -> None:
    if isinstance(target, type):
        setattr(target, name, value)
    else:
        object.__setattr__(target, name, value)


def _put_back(target: Any, name: str, value: Any, old: Any) -> None:
    if vars(target).get(name, _ABSENT) is not value:
        raise RestoreError(
            f"cannot restore {type(target).__name__}.{name}: something else replaced it while the cache was on; "
            f"undo that patch first, then disable the cache"
        )
    if old is _ABSENT:
        (delattr if isinstance(target, type) else object.__delattr__)(target, name)
    else:
        _assign(target, name, old)


def _put_class_back(target: Any, kind: type, old: type) -> None:
    if type(target) is not kind:
        raise RestoreError(
            f"cannot restore the class of {old.__name__}: something else changed it while the cache was on"
        )
    object.__setattr__(target, "__class__", old)
