"""The undo log puts everything back, in any order of life."""

import types

import pytest
from torch import nn

from fastcache_xdit.undo import Undo


class Owner:
    def method(self):
        return "class"


def test_instances_modules_and_classes_are_restored():
    owner, module, block = Owner(), types.ModuleType("some"), nn.Linear(2, 2)
    before = [dict(vars(each)) for each in (owner, module, block, Owner)]
    with Undo() as undo:
        undo.set(owner, "method", lambda: "instance")
        undo.set(module, "value", 1)
        undo.set(block, "forward", lambda x: x)
        undo.set(Owner, "other", staticmethod(lambda: "added"))
        assert (owner.method(), module.value, block(3), Owner.other()) == ("instance", 1, 3, "added")
    assert [dict(vars(each)) for each in (owner, module, block, Owner)] == before
    assert owner.method() == "class"


def test_patches_of_one_attribute_come_off_in_reverse():
    owner = Owner()
    with Undo() as undo:
        undo.set(owner, "method", lambda: 1)
        undo.set(owner, "method", lambda: 2)
        assert owner.method() == 2
    assert owner.method() == "class"


def test_an_exception_restores_too():
    owner = Owner()
    with pytest.raises(KeyError), Undo() as undo:
        undo.set(owner, "value", 1)
        raise KeyError
    assert not hasattr(owner, "value")


def test_a_foreign_patch_on_top_is_not_thrown_away():
    owner = Owner()
    undo = Undo()
    undo.set(owner, "method", lambda: 1)
    owner.method = lambda: "foreign"
    with pytest.raises(RuntimeError, match="undo that patch first"):
        undo.close()
    assert owner.method() == "foreign"


def test_a_wrapper_that_hands_its_attributes_on_is_restored_itself():
    """As what `torch.compile` makes of a module."""

    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            object.__setattr__(self, "inner", inner)

        def __delattr__(self, name):
            delattr(self.inner, name)

    wrapper = Wrapper(nn.Linear(2, 2))
    before = dict(vars(wrapper))
    with Undo() as undo:
        undo.set(wrapper, "forward", lambda x: x)
    assert dict(vars(wrapper)) == before


class Held:
    """Has two methods."""

    def method(self):
        return "class"

    def other(self):
        return "other"


@pytest.mark.parametrize("make", [Held, lambda: types.SimpleNamespace(method=lambda: "class", other=lambda: "other")])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first one first", "last one first"])
def test_wrapped_methods_come_off_in_any_order_and_leave_no_trace(make, order):
    owner = make()
    before, kind, logs = dict(vars(owner)), type(owner), (Undo(), Undo())
    for number, undo in enumerate(logs):
        undo.wrap(owner, "method", lambda original, number=number: f"{number} {original()}")
        undo.wrap(owner, "other", lambda original: original())
    assert owner.method() == "1 0 class"
    logs[order[0]].close()
    assert owner.method() == f"{order[1]} class"
    logs[order[1]].close()
    assert owner.method() == "class" and dict(vars(owner)) == before and type(owner) is kind


def test_a_method_that_was_set_on_the_instance_before_or_after_stays_in_use():
    owner = Held()
    owner.method = lambda: "own"
    with Undo() as undo:
        undo.wrap(owner, "method", lambda original: f"wrapped {original()}")
        assert owner.method() == "wrapped own"
        inner = owner.method
        owner.method = lambda: f"outer {inner()}"
        assert owner.method() == "outer wrapped own"
    assert owner.method() == "outer own", "what was put on top stays, and so does what it calls"


def test_an_instance_with_wrapped_methods_is_of_the_type_that_it_was():
    """Bria's pipeline asks `type(self.scheduler) != FlowMatchEulerDiscreteScheduler`."""
    owner = Owner()
    with Undo() as undo:
        undo.wrap(owner, "method", lambda original: original())
        assert type(owner) == Owner and Owner == type(owner) and hash(type(owner)) == hash(Owner)  # noqa: E721
        assert type(owner) != type(other := nn.Linear(2, 2)) and type(other) != type(owner)  # noqa: E721
    assert type(owner) is Owner


def test_what_cannot_be_restored_is_restored_by_another_call_and_hides_no_exception():
    owner, other, undo = Owner(), Owner(), Undo()
    undo.set(owner, "value", 1)
    undo.set(other, "value", 1)
    other.value = 2
    with pytest.raises(RuntimeError, match="undo that patch first"):
        undo.close()
    assert not hasattr(owner, "value")
    other.value = 1
    undo.close()
    undo.close()
    assert not hasattr(other, "value")
    with pytest.raises(KeyError), Undo() as undo:
        undo.set(owner, "value", 1)
        owner.value = 2
        raise KeyError
