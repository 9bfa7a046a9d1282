"""Write HTML pages from templates, with their pictures inside."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, select_autoescape


def write_page(path: Path, template: str, package: str = "fastcache_xdit.evaluate", **values: Any) -> None:
    """Render a template of `package`, or one beside this file; the page needs no other file and no network."""
    loader = ChoiceLoader([PackageLoader(package, "."), PackageLoader("fastcache_xdit.evaluate", ".")])
    page = Environment(loader=loader, autoescape=select_autoescape(default=True), trim_blocks=True, lstrip_blocks=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page.get_template(template).render(values))


def data_url(content: bytes, kind: str) -> str:
    """Turn the bytes of a picture or clip into a URL that holds it; `kind` is such as image/png."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
