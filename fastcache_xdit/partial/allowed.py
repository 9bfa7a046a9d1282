"""Models, layouts and options with which partial steps do not work; refused when the cache is enabled."""

from __future__ import annotations

from collections.abc import Sequence

from fastcache_xdit.errors import UsageError
from fastcache_xdit.models.spec import ModelSpec
from fastcache_xdit.options import TokensConfig
from fastcache_xdit.parallel.topology import Topology
from fastcache_xdit.segments.attention import attentions
from fastcache_xdit.segments.segment import Segment


def check_tokens(
    options: TokensConfig,
    spec: ModelSpec,
    segments: Sequence[Segment],
    topology: Topology,
    rules_out_partial: str = "",
) -> None:
    """Refuse partial steps where they do not work.

    Args:
        options: of partial steps.
        spec: description of the model.
        segments: the segments of this rank.
        topology: the parallel layout.
        rules_out_partial: name of a feature in use that does not work with partial steps, or empty.
    Raises:
        UsageError: the model, the layout, or a feature in use does not allow them.
    """
    if rules_out_partial:
        raise UsageError(f"tokens with {rules_out_partial} is not supported", "leave one of them out")
    if not all(block.attentions for block in spec.blocks.values()):
        raise UsageError(
            f"tokens with {spec.name} is not supported: it is not known how some of its tokens alone go through its "
            "blocks",
            "leave tokens out",
        )
    _check_modules(segments)
    if options.balance == "reshard" and any(block.rotary for block in spec.blocks.values()):
        raise UsageError(
            f"tokens.balance=reshard is not supported for {spec.name}, whose rotary tables stay on their ranks",
            "set tokens.balance=pad",
        )
    if topology.pipefusion_parallel_degree > 1:
        _check_stages(options, spec)
    if topology.tensor_parallel_degree > 1 and options.merge_ratio is not None:
        raise UsageError(
            "tokens.merge_ratio is not supported with tensor_parallel_degree > 1, whose ranks would merge the same "
            "tokens apart",
            "set tokens.keep_ratio",
        )


def _check_modules(segments: Sequence[Segment]) -> None:
    """Refuse blocks whose projections to keys and values cannot be intercepted: compiled or fused ones."""
    if any(hasattr(block.module, "_orig_mod") for segment in segments for block in segment.blocks):
        raise UsageError("tokens with compiled blocks is not supported", "leave torch.compile out")
    for name, attention in attentions(segments):
        if getattr(attention, "fused_projections", False):
            raise UsageError(f"tokens needs keys of their own in {name}", "call pipe.unfuse_qkv_projections() first")


def _check_stages(options: TokensConfig, spec: ModelSpec) -> None:
    """Refuse options that do not keep the keys and values of every token, as PipeFusion needs them."""
    if not spec.patches_in_part:
        raise UsageError(f"tokens with {spec.name} under PipeFusion is not supported", "leave tokens out")
    if options.score == "region":
        raise UsageError("tokens.score=region is not supported under PipeFusion", "set tokens.keep_ratio")
    if options.static_kv == "drop":
        raise UsageError("tokens.static_kv=drop is not supported under PipeFusion", "set tokens.static_kv=reuse")
    if options.merge_ratio is not None:
        raise UsageError("tokens.merge_ratio is not supported under PipeFusion", "set tokens.keep_ratio")
