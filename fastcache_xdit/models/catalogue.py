"""The models that FastCache knows: one literal per transformer class."""

from __future__ import annotations

import weakref
from typing import Any

from fastcache_xdit.errors import UsageError
from fastcache_xdit.models.spec import ENCODER, HIDDEN, BlockSpec, ModelSpec

_IMAGE = BlockSpec(returns=(HIDDEN,), attentions=("attn1",))
_JOINT = BlockSpec(returns=(ENCODER, HIDDEN), attentions=("attn", "attn2"))
_ROTARY = BlockSpec(returns=(ENCODER, HIDDEN), attentions=("attn",), rotary=True)
_CONTROLNET = ("controlnet_block_samples", "controlnet_single_block_samples", "block_controlnet_hidden_states")

SPECS = (
    ModelSpec("PixArtTransformer2DModel", {"transformer_blocks": _IMAGE}),
    ModelSpec("DiTTransformer2DModel", {"transformer_blocks": _IMAGE}),
    ModelSpec(
        "FluxTransformer2DModel",
        {"transformer_blocks": _ROTARY, "single_transformer_blocks": _ROTARY},
        added=_CONTROLNET,
        patches_in_part=False,  # xDiT splits text from keys by the number of queries
        packed=2,
    ),
    ModelSpec(
        "SD3Transformer2DModel",
        {"transformer_blocks": _JOINT},
        ("skip_layers",),
        _CONTROLNET,
        patches_follow_first=True,
    ),
    ModelSpec(
        "WanTransformer3DModel",
        {"blocks": BlockSpec()},  # it turns queries where no partial step can reach
    ),
)
UNCACHED = (ModelSpec("Flux2Transformer2DModel", packed=2),)  # facts of classes that xDiT runs without FastCache

_derived: weakref.WeakKeyDictionary[Any, ModelSpec] = weakref.WeakKeyDictionary()


def known_models() -> list[str]:
    """List the class names of the transformers that FastCache knows."""
    return [spec.name for spec in SPECS]


def spec_named(name: str) -> ModelSpec:
    """Return the spec of a transformer class; one without blocks for a class that FastCache does not know."""
    return next((spec for spec in (*SPECS, *UNCACHED) if spec.name == name), ModelSpec(name))


def is_known(model: Any) -> bool:
    """Return whether the catalogue has the class of a transformer instance."""
    return _literal(model) is not None


def keep_derived(model: Any, spec: ModelSpec) -> None:
    """Keep the spec that was derived for a transformer instance, for as long as the instance lives."""
    _derived[model] = spec


def spec_for(model: Any) -> ModelSpec:
    """Return the spec of a transformer instance, found by class name along its base classes.

    Raises:
        UsageError: no spec; the message lists the known classes.
    """
    if spec := _found(model):
        return spec
    raise UsageError(
        f"FastCache does not know the blocks of {type(model).__name__}",
        f"it knows those of {', '.join(known_models())}, and of each model that was called with granularity: step. "
        f"For other models leave test and granularity out",
    )


def _found(model: Any) -> ModelSpec | None:
    return _literal(model) or _derived.get(model)


def _literal(model: Any) -> ModelSpec | None:
    bases = {base.__name__ for base in type(model).__mro__}
    return next((spec for spec in SPECS if spec.name in bases), None)
