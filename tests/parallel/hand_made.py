"""Ulysses made by hand in a plain diffusers transformer, with xDiT's groups alone, as xDiT's developer guide does."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn
from torch.nn import functional


def divide(transformer: nn.Module) -> None:
    """Give each sequence rank a part of the rows of a PixArt model's image, and let attention exchange heads."""
    from xfuser.core.distributed import get_sequence_parallel_rank, get_sequence_parallel_world_size, get_sp_group

    forward = transformer.forward

    @functools.wraps(forward)
    def divided(hidden_states: torch.Tensor, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        part = hidden_states.chunk(get_sequence_parallel_world_size(), dim=-2)[get_sequence_parallel_rank()]
        (output,) = forward(part, *args, return_dict=False, **kwargs)
        return (get_sp_group().all_gather(output.contiguous(), dim=-2),)

    transformer.forward = divided
    transformer.pos_embed.forward = _rows_of_rank(transformer.pos_embed)
    for block in transformer.transformer_blocks:
        block.attn1.processor = _HeadExchange()


def _rows_of_rank(embedding: nn.Module) -> Any:
    """Return a forward of the patch embedding with the positions of this rank's rows in the whole image."""
    from xfuser.core.distributed import get_sequence_parallel_rank, get_sequence_parallel_world_size

    def forward(latent: torch.Tensor) -> torch.Tensor:
        degree, rank = get_sequence_parallel_world_size(), get_sequence_parallel_rank()
        tokens = embedding.proj(latent).flatten(2).transpose(1, 2)
        return tokens + embedding.pos_embed.chunk(degree, dim=1)[rank]

    return forward


class _HeadExchange:
    """Attention over the image tokens of all sequence ranks."""

    def __call__(self, attn: Any, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        from xfuser.model_executor.layers import usp

        parts = (project(hidden_states) for project in (attn.to_q, attn.to_k, attn.to_v))
        heads = [usp._ft_c_input_all_to_all(part.unflatten(-1, (attn.heads, -1)).transpose(1, 2)) for part in parts]
        attended = usp._ft_c_output_all_to_all(functional.scaled_dot_product_attention(*heads))
        return attn.to_out[1](attn.to_out[0](attended.transpose(1, 2).flatten(2)))
