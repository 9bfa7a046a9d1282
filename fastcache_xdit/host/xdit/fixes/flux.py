"""Fixes for FLUX under sequence parallelism, where ranks replicate the text or the image does not divide."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fastcache_xdit.host.xdit.fixes.limits import refuse
from fastcache_xdit.undo import Undo

_MODELS = "xfuser.model_executor.models.transformers"


@dataclass
class Lengths:
    """Token counts of the running forward: of the text, and of the zeros padded behind the image."""

    text: int = 0
    padding: int = 0


def odd_lengths(undo: Undo) -> bool:
    """Attend to each text token once and to no padding (defects D5, D10).

    A text that does not divide among the ranks is replicated, and its keys then count once per rank. An image that does
    not divide fails with AttributeError on a misspelt method; without that error, its padding would be attended to.

    The fixed attention raises UsageError for an image that does not divide under ring attention: ring ranks exchange
    keys of equal length, so the padding of the last rank cannot be left out.
    """
    module = importlib.import_module(f"{_MODELS}.transformer_flux")
    lengths = Lengths()
    full, local = module.xFuserFlux1Transformer2DWrapper, module.xFuserFluxTransformer2DWrapper
    undo.set(full, "_pad_to_sp_divisible", full.pad_to_sp_divisible)
    undo.set(full, "forward", _measured(full.forward, lengths, pads=True))
    undo.set(local, "forward", _measured(local.forward, lengths, pads=False))
    undo.set(module, "USP", _attention(module.USP, lengths))
    return True


def shared_text(undo: Undo) -> bool:
    """Attend to each text token of FLUX.2 once under PipeFusion with sequence parallelism.

    There every rank holds the full text, and both kinds of block put it in front of the image without telling the
    attention, so that its keys count once per rank.
    """
    if importlib.util.find_spec("diffusers.models.transformers.transformer_flux2") is None:
        return False
    module = importlib.import_module(f"{_MODELS}.transformer_flux2")
    lengths, local = Lengths(), module.xFuserFlux2Transformer2DModelWrapper
    undo.set(local, "forward", _measured(local.forward, lengths, pads=False))
    undo.set(module, "USP", _attention(module.USP, lengths))
    return True


def _measured(forward: Callable, lengths: Lengths, pads: bool) -> Callable:
    """Record the lengths before xDiT cuts the inputs; `pads` if the model itself cuts and pads the image."""
    distributed = importlib.import_module("xfuser.core.distributed")

    @functools.wraps(forward)  # the cache binds arguments by xDiT's names
    def measured(self, hidden_states: torch.Tensor, encoder_hidden_states=None, *args: Any, **kwargs: Any):
        ulysses, ring = distributed.get_ulysses_parallel_world_size(), distributed.get_ring_parallel_world_size()
        image = hidden_states.shape[1] if pads else 0
        refuse(ulysses=ulysses, ring=ring, flux_image_tokens=image)
        lengths.text = 0 if encoder_hidden_states is None else encoder_hidden_states.shape[-2]
        lengths.padding = -image % (ulysses * ring)
        return forward(self, hidden_states, encoder_hidden_states, *args, **kwargs)

    return measured


def _attention(original: Callable, lengths: Lengths) -> Callable:
    distributed = importlib.import_module("xfuser.core.distributed")

    @functools.wraps(original)
    def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        degree = distributed.get_sequence_parallel_world_size()
        if degree == 1 or kwargs.get("joint_strategy") is not None:  # with PipeFusion, xDiT passes the text separately
            return original(query, key, value, **kwargs)
        if not getattr(distributed.get_runtime_state(), "split_text_embed_in_sp", True):  # FLUX.2's runner says nothing
            query, key, value, text = _split_text(query, key, value, lengths.text)
            kwargs.update(text, joint_strategy="front")
        if lengths.padding:  # at the end of the last rank, so at the end of all keys once Ulysses has joined them
            kwargs["attention_kwargs"] = {"valid_kv_len": degree * key.shape[2] - lengths.padding}
        return original(query, key, value, **kwargs)

    return attention


def _split_text(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, text: int):
    """Split [B, H, text + image, d], with the text under the names that xDiT's attention expects."""
    front = {"joint_query": query[:, :, :text], "joint_key": key[:, :, :text], "joint_value": value[:, :, :text]}
    return query[:, :, text:], key[:, :, text:], value[:, :, text:], front
