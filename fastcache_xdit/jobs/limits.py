"""Refuse texts that the loaded model would cut off in silence."""

from __future__ import annotations

from typing import Any

from fastcache_xdit.jobs.item import Item

TOKENIZERS = ("tokenizer_3", "tokenizer_2", "tokenizer")  # the first one there feeds the encoder that reads furthest


def too_long(pipe: Any, item: Item, call: dict[str, Any]) -> str | None:
    """Tell why the model cannot read an item's texts to their end; None where it can."""
    tokenizers = (getattr(pipe, name, None) for name in TOKENIZERS)
    tokenizer = next((tokenizer for tokenizer in tokenizers if tokenizer is not None), None)
    if tokenizer is None:
        return None
    limit = min(call.get("max_sequence_length") or tokenizer.model_max_length, tokenizer.model_max_length)
    for name in ("prompt", "negative_prompt"):
        count = len(tokenizer(getattr(item, name) or "", truncation=False).input_ids)
        if count > limit:
            return f"the {name} has {count} tokens, the model reads {limit}; shorten it, or raise max_sequence_length"
    return None
