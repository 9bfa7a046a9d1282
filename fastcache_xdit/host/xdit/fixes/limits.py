"""Layouts that xDiT accepts but computes wrongly, and that no small fix corrects."""

from __future__ import annotations

from fastcache_xdit.errors import UsageError


def refuse(*, ulysses: int = 1, ring: int = 1, flux_image_tokens: int = 0) -> None:
    """Refuse such a layout.

    Args:
        ulysses: Ulysses degree.
        ring: ring degree.
        flux_image_tokens: image tokens of FLUX.1 without PipeFusion; 0 for others.
    Raises:
        UsageError: the layout is one of them; names what is allowed.
    """
    if ring > 1 and flux_image_tokens % (ulysses * ring):
        raise UsageError(
            f"FLUX.1 with {flux_image_tokens} image tokens and ring_degree={ring} is not supported: the tokens must "
            f"be a multiple of ulysses_degree x ring_degree = {ulysses * ring}",
            "choose another image size, or use ulysses_degree alone",
        )
