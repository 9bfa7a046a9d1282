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
