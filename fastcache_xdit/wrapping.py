"""Methods of one instance that something stands around, without a trace in its copies.

Closures that are set on an instance go along when it is copied, and then drive the original; and whatever else is set
there later hides them. So the instance gets a subclass of its class instead, whose methods look up in the instance what
stands around them. Instances of one class share the subclass, so that compiled code is shared as well.
"""

from __future__ import annotations

import copyreg
import functools
import weakref
from collections.abc import Callable
from typing import Any

PREFIX = "_fastcache_"  # of all attributes that copies must not have
_WRAPPED = f"{PREFIX}wrapped"
_MADE = f"{PREFIX}made"  # in classes with wrapped methods

Around = Callable[..., Any]  # (original, *args, **kwargs)


class Wrapped:
    """What stands around the methods of one instance.

    Attributes:
        owner: the instance; a copy that has this by some other way than `copy` or `pickle` is not it.
        kind: its class before.
        around: by name of a method, the innermost first.
        hidden: what the instance itself had under these names.
        placed: what it has there now, where its class cannot be replaced.
    """

    def __init__(self, owner: Any) -> None:
        self.owner = weakref.ref(owner) if hasattr(owner, "__weakref__") else lambda: owner
        self.kind: Any = type(owner)
        self.around: dict[str, list[Around]] = {}
        self.hidden: dict[str, Any] = {}
        self.placed: dict[str, Any] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return type(None), ()

    def call(self, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
        """Return what a call of the method comes to."""
        call = self.hidden.get(name, original)
        for around in self.around.get(name, ()):
            outer = functools.partial(around, call)
            vars(outer)["__wrapped__"] = call  # whose signature it has
            call = outer
        return call


@functools.cache
def _stay_uncompiled() -> None:
    """Have torch.compile leave all functions of this package as they are; what they call, such as blocks, it compiles.

    `torch.compiler.disable` would leave one function alone, and compile what that calls of ours.
    """
    from torch._dynamo import trace_rules  # which takes a second

    trace_rules.add(__name__.partition(".")[0])


def wrap(target: Any, name: str, around: Around) -> None:
    """Let `around(original, *args, **kwargs)` make all calls of a method of an instance, outside of earlier ones."""
    _stay_uncompiled()
    wrapped = _of(target)
    if wrapped is None:
        wrapped = Wrapped(target)
        object.__setattr__(target, _WRAPPED, wrapped)
    if name in vars(target) and name not in wrapped.around:
        wrapped.hidden[name] = vars(target)[name]
        object.__delattr__(target, name)
    wrapped.around.setdefault(name, []).append(around)
    try:
        _set_class(target, wrapped)
    except TypeError:  # of a class that has no subclass like it, as SimpleNamespace: such an instance is not copied
        wrapped.placed[name] = _method(target, name, wrapped.hidden.get(name) or _bound(type(target), name, target))
        object.__setattr__(target, name, wrapped.placed[name])


def unwrap(target: Any, name: str, around: Around) -> None:
    """Take back what `wrap` did; other changes of the instance stay."""
    wrapped = _of(target)
    assert wrapped is not None
    wrapped.around[name].remove(around)
    if wrapped.around[name]:
        return
    del wrapped.around[name]
    placed = wrapped.placed.pop(name, None)
    if placed is not None and vars(target).get(name) is placed:
        object.__delattr__(target, name)
    if name in wrapped.hidden and name not in vars(target):  # else a later patch may still call what is hidden
        object.__setattr__(target, name, wrapped.hidden.pop(name))
    if placed is None:
        _set_class(target, wrapped)
    if not wrapped.around and not wrapped.hidden:
        object.__delattr__(target, _WRAPPED)


def _of(instance: Any) -> Wrapped | None:
    wrapped = vars(instance).get(_WRAPPED)
    return wrapped if wrapped is not None and wrapped.owner() is instance else None


def _set_class(target: Any, wrapped: Wrapped) -> None:
    """Give an instance the class with its wrapped methods; a class that something else gave it meanwhile stays."""
    names = frozenset((*wrapped.around, *wrapped.hidden))
    if type(target) is wrapped.kind or _is_made(type(target)):
        object.__setattr__(target, "__class__", _class_with(wrapped.kind, names))


def _is_made(kind: type) -> bool:
    """Return whether a class is one with wrapped methods; an equal one need not be."""
    return _MADE in vars(kind)


@functools.cache
def _alike(kind: Any) -> Any:
    """Return a kind of class that equals the one it is made from, for code that compares the types of instances."""

    def __eq__(self: type, other: object) -> bool:
        return self is other or self.__mro__[1] is other

    def __hash__(self: type) -> int:
        return hash(self.__mro__[1])

    return type(kind.__name__, (kind,), {"__eq__": __eq__, "__hash__": __hash__})


@functools.cache
def _class_with(kind: Any, names: frozenset[str]) -> Any:
    if not names:
        return kind
    members: dict[str, Any] = {name: _looking_up(kind, name) for name in sorted(names)}
    members |= {"__reduce_ex__": _reduced(kind), "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    alike: Any = _alike
    return alike(type(kind))(kind.__name__, (kind,), members | {"__doc__": kind.__doc__, _MADE: True})


def _looking_up(kind: type, name: str) -> Any:
    """Return a method that is called through what stands around it on its instance; nothing does on a copy."""
    if not hasattr(kind, name):  # its instances hand the name on, as xDiT's wrappers do
        return property(lambda self: _method(self, name, _bound(kind, name, self)))

    @functools.wraps(getattr(kind, name))
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _call(self, name, _bound(kind, name, self), *args, **kwargs)

    return method


def _method(instance: Any, name: str, original: Callable[..., Any]) -> Callable[..., Any]:
    return functools.wraps(original)(functools.partial(_call, instance, name, original))


def _call(instance: Any, name: str, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    wrapped = _of(instance)
    return (wrapped.call(name, original) if wrapped else original)(*args, **kwargs)


def _bound(kind: type, name: str, instance: Any) -> Any:
    for base in kind.__mro__:
        if name in vars(base):
            return vars(base)[name].__get__(instance, kind)
    return kind.__getattr__(instance, name)  # type: ignore[attr-defined]  # a wrapper, as those of xDiT


def _reduced(kind: Any) -> Callable[..., Any]:
    """Return a `__reduce_ex__`, by which instances are copied and pickled, that knows nothing of this module."""

    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        reduced = kind.__reduce_ex__(self, protocol)
        if isinstance(reduced, str):
            return reduced
        function, arguments, *rest = (_plain(part) for part in reduced)
        is_new = getattr(function, "__name__", "") == "__newobj__" and arguments == (type(self),)
        if is_new:  # which pickle takes for the instance's own class alone
            return copyreg._reconstructor, (kind, object, None), *rest  # type: ignore[attr-defined]
        return function, tuple(map(_plain, arguments)), *rest

    return __reduce_ex__


def _plain(part: Any) -> Any:
    """Return a class without wrapped methods, the attributes of an instance without ours, and all else as it is."""
    if isinstance(part, type) and _is_made(part):
        return part.__mro__[1]
    if isinstance(part, dict):
        return {name: value for name, value in part.items() if not str(name).startswith(PREFIX)}
    return part
