"""Turn lines of a prompts file into the items of a job, in batches that are settled once and for all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from fastcache_xdit.jobs.item import Item
from fastcache_xdit.jobs.recipe import BadLine, PromptLine, Recipe


def items_of(lines: Sequence[PromptLine | BadLine], recipe: Recipe, pixels: int) -> list[Item]:
    """Make the items of a job; bad lines, and sizes that are no multiple of the model's `pixels`, have failed."""
    items = [_item(number, line, recipe) for number, line in enumerate(lines)]
    return list(_in_batches([_sized(item, pixels) for item in items], recipe.batch_size))


def wrong_size(width: int, height: int, pixels: int) -> str | None:
    """Tell why a model whose tokens are `pixels` wide and high cannot make an image of this size; None where it can."""
    if width % pixels == 0 and height % pixels == 0:
        return None
    return f"{width} x {height} pixels are not possible; this model takes multiples of {pixels}"


def _item(number: int, line: PromptLine | BadLine, recipe: Recipe) -> Item:
    if isinstance(line, BadLine):
        return Item(id=number, prompt=line.text, state="failed", error=line.reason)
    call = recipe.call
    values: dict[str, Any] = {
        "negative_prompt": call.get("negative_prompt"),
        "seed": recipe.seed + number,
        "width": call["width"],
        "height": call["height"],
        "steps": call["num_inference_steps"],
        "guidance": call["guidance_scale"],
    }
    return Item(id=number, **values | line.model_dump(exclude_none=True))


def _sized(item: Item, pixels: int) -> Item:
    reason = wrong_size(item.width or 0, item.height or 0, pixels)
    return item.model_copy(update={"state": "failed", "error": reason}) if reason and item.state != "failed" else item


def _in_batches(items: Sequence[Item], size: int) -> Iterator[Item]:
    """Number the batches: `size` items of equal shape each, in the order of the file."""
    batches_of: dict[tuple, list[int]] = defaultdict(list)  # by shape: the batch of each item so far
    batches = 0
    for item in items:
        if item.state == "failed":
            yield item
            continue
        numbers = batches_of[item.shape]
        if len(numbers) % size == 0:
            numbers.append(batches)
            batches += 1
        else:
            numbers.append(numbers[-1])
        yield item.model_copy(update={"batch": numbers[-1]})
