"""The undo log: every change to an object that is not ours goes through it and can be taken back."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal

from fastcache_xdit.errors import RestoreError
from fastcache_xdit.wrapping import Around, unwrap, wrap

logger = logging.getLogger(__name__)

_ABSENT = object()


class Undo(contextlib.ExitStack):
    """A log of changes to instances, modules and classes; closing it takes them back, the last one first.

    What something else has replaced in the meantime stays in the log: `close` raises RestoreError, having taken back
    all other changes, and can be called again. An exception that ends a with block is never replaced by that.

    >>> with Undo() as undo:
    ...     undo.set(module, "function", stand_in)
    """

    def __init__(self) -> None:
        super().__init__()
        self._stuck: list[tuple[Callable[[], None], RestoreError]] = []

    def wrap(self, target: Any, name: str, around: Around) -> None:
        """Let `around(original, *args, **kwargs)` make all calls of a method of one instance.

        Of several, the last one is outermost; they may come off in any order. Copies and pickles of the instance do not
        have them, and patches that others put on later do not stop this. `__call__` may be wrapped too.
        """
        wrap(target, name, around)
        self.callback(unwrap, target, name, around)

    def set(self, target: Any, name: str, value: Any) -> None:
        """Set `target.name = value`; closing the log restores or deletes the attribute.

        Instances use `object.__setattr__`, because `nn.Module.__setattr__` would register modules and parameters
        elsewhere. Classes do not allow that and are set the ordinary way.
        """
        old = vars(target).get(name, _ABSENT)
        _assign(target, name, value)
        self._keep(functools.partial(_put_back, target, name, value, old))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        super().__exit__(kind, error, trace)
        stuck, self._stuck = self._stuck, []
        for put_back, _ in reversed(stuck):
            self._keep(put_back)
        for _, reason in stuck:
            if error is None:
                raise reason
            logger.error("%s", reason)
        return False

    def _keep(self, put_back: Callable[[], None]) -> None:
        self.callback(self._try, put_back)

    def _try(self, put_back: Callable[[], None]) -> None:
        try:
            put_back()
        except RestoreError as error:
            self._stuck.append((put_back, error))


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
