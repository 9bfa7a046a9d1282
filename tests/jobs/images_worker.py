"""Worker: images of one replica, whatever it made before, and whatever is made beside them."""

from __future__ import annotations

import gc
from typing import Any

import torch
from diffusers.models.embeddings import PatchEmbed

from fastcache_xdit.errors import ReplicaError
from fastcache_xdit.host.xdit import loading
from fastcache_xdit.host.xdit.replica import join
from fastcache_xdit.jobs.item import Item
from fastcache_xdit.jobs.recipe import Recipe
from fastcache_xdit.jobs.replica import Replica
from fastcache_xdit.plugin import register
from tests.parallel.ranks import report

CACHE = {"test": "paper", "error_budget": 2.0}
BASE = {"steps": 6, "guidance": 2.5, "width": 128, "height": 128}


def main(model: str, call: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    loading.prepare()
    register()
    join(replicas=1)
    recipe = Recipe(model=model, dtype="float32", seed=0, call=call, cache=CACHE)
    replica = Replica(recipe, loading.xdit_options(options))
    first, other, small, broken, neighbour = (_item(number) for number in range(5))
    small = small.model_copy(update={"width": 64, "height": 64})
    broken = broken.model_copy(update={"guidance": 1e38})
    wrong = _item(5).model_copy(update={"width": 8, "height": 8})
    row = [
        [first],
        [other],
        [small],
        [broken],
        [wrong],
        [first],
        [first, neighbour],
        [small],
        [first, neighbour],
        [first],
    ]
    made = [replica.generate(batch) for batch in row]
    return {
        "outcomes": [{outcome.id: outcome.checksum or outcome.error for outcome in outcomes} for outcomes, _ in made],
        "figures": [tuple(figures) for _, figures in made],
        "weights": _weights(replica),
        "positions": _positions(replica),
        "after": _after_an_error(replica, first),
    }


def _after_an_error(replica: Replica, item: Item) -> tuple[str | None, str | None]:
    """What an item says that the text encoder raises on, on every rank, and what the replica says to the next one."""

    def fail(*_: Any) -> None:
        raise MemoryError("no room")

    hook = replica.pipe.text_encoder.register_forward_pre_hook(fail)
    outcomes, _ = replica.generate([item])
    hook.remove()
    told = outcomes[0].error if outcomes else None
    try:
        replica.generate([item])
    except ReplicaError as ended:
        return told, str(ended)
    return told, None


def _item(number: int) -> Item:
    prompt = f"a {('red', 'blue', 'green', 'pink', 'cyan', 'gray')[number]} circle"
    return Item(id=number, prompt=prompt, seed=number, **BASE)


def _positions(replica: Replica) -> list[torch.dtype]:
    """Precision of the image tokens' positions that the last image was made with."""
    modules = replica._engine.pipe.transformer.modules()
    return [each.pos_embed.dtype for each in modules if isinstance(each, PatchEmbed)]


def _weights(replica: Replica) -> int:
    """How many transformers live in this process."""
    kind = type(replica._engine.pipe.transformer)
    return sum(isinstance(each, kind) for each in gc.get_objects() if isinstance(each, torch.nn.Module))


report(main)
