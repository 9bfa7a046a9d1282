"""Layouts that xDiT accepts, gets wrong, and that no small fix makes right."""

from __future__ import annotations

from fastcache_xdit.errors import UsageError


def refuse(*, ulysses: int = 1, ring: int = 1, flux_image_tokens: int = 0) -> None:
    """Raise UsageError for such a layout; `flux_image_tokens` is the image length of FLUX.1 with one pipeline stage.

    Raises:
        UsageError: names the combination, what is allowed, and what to do.
    """
    if ring > 1 and flux_image_tokens % (ulysses * ring):
        raise UsageError(
            f"FLUX.1 with {flux_image_tokens} image tokens and ring_degree={ring} is not supported: the tokens must "
            f"be a multiple of ulysses_degree x ring_degree = {ulysses * ring}",
            "choose another image size, or use ulysses_degree alone",
        )
