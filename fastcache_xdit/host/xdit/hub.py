"""Models of the Hugging Face hub: whether one can be had, asked before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, LocalEntryNotFoundError

from fastcache_xdit.errors import UsageError

INDEX = "model_index.json"


def check_there(model: str) -> None:
    """Raise UsageError unless a model is a folder, in the hub's cache, or on a hub that can be reached."""
    if Path(model).is_dir():
        return
    advice = f"give a folder, or where there is a connection: hf download {model}"
    try:
        hf_hub_download(model, INDEX)
    except LocalEntryNotFoundError:
        raise UsageError(f"{model} is not on this machine, and the hub cannot be reached", advice) from None
    except EntryNotFoundError:
        return  # a repository of another kind, which its loader may know
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"{model} cannot be had from the hub: {reason}", advice) from None
