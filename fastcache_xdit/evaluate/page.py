"""What every page is made with: templates beside this file, and pictures inside the page."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, select_autoescape


def write_page(path: Path, template: str, package: str = "fastcache_xdit.evaluate", **values: Any) -> None:
    """Render a template of a package, or one of this one; the page needs no other file and no network."""
    loader = ChoiceLoader([PackageLoader(package, "."), PackageLoader("fastcache_xdit.evaluate", ".")])
    page = Environment(loader=loader, autoescape=select_autoescape(default=True), trim_blocks=True, lstrip_blocks=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page.get_template(template).render(values))


def data_url(content: bytes, kind: str) -> str:
    """A picture as part of the page; `kind` is png or webp."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
