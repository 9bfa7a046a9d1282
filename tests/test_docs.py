"""README and docs: no link, command or flag in them that does not exist, and code that runs."""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from fastcache_xdit.cli import catalogue
from fastcache_xdit.cli.options import (
    batch,
    bench,
    bench_peers,
    bench_speed,
    calibrate,
    calibrations,
    doctor,
    generate,
    report,
    run,
    tune,
)
from fastcache_xdit.host.xdit.flags import ENGINE, names
from tests.metadata import PROJECT

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [path for pattern in ("*.md", "docs/**/*.md", "shapes/**/*.md") for path in sorted(ROOT.glob(pattern))]
ADDRESS = PROJECT["urls"]["Repository"]
RAW = ADDRESS.replace("github.com", "raw.githubusercontent.com")
INSIDE = re.compile(f"(?:{re.escape(ADDRESS)}/blob|{re.escape(RAW)})/main/(.+)")
INLINE, REFERENCE = re.compile(r"\]\(([^)\s]+)\)"), re.compile(r"^\[[^\]]+\]: (\S+)$", re.M)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
COMMAND = re.compile(r"(?:fastcache-xdit|-m fastcache_xdit) ([a-z]+)(?: ([a-z]+))?")
FLAG = re.compile(r"(?<![\w-])--([a-z][\w-]*)")
GROUPS = {"batch": catalogue.BATCH, "bench": catalogue.BENCH, "calibrations": catalogue.CALIBRATIONS}
OWN = [generate, run, doctor, calibrate, tune, bench, bench_peers, bench_speed, report]
OTHERS = {
    *("nproc_per_node", "help", "help-xdit", "version"),  # torchrun, everybody
    *("file", "tag", "rm", "gpus", "ipc", "volume", "build"),  # docker
}


def text_of(page: Path) -> str:
    """Return the page without code between fences."""
    return FENCE.sub("", page.read_text())


def links(page: Path) -> list[str]:
    """Return the targets of all links and pictures on a page."""
    text = text_of(page)
    return [*INLINE.findall(text), *REFERENCE.findall(text)]


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text_of(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 150


def test_the_readme_has_links_that_work_on_a_package_index():
    for target in links(README):
        assert target.startswith("https://"), f"{target} breaks outside of the repository"
    assert f"{ADDRESS}/blob/main/docs/commands.md" in links(README), "the address is that of the metadata"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_to_files(page):
    for target in links(page):
        inside = INSIDE.fullmatch(target)
        if "://" in target and not inside:
            continue
        path, _, anchor = target.partition("#")
        file = ROOT / inside[1] if inside else (page.parent / path if path else page)
        assert file.exists(), f"{named(page)} links to {target}, which is not there"
        assert not anchor or anchor in anchors(file), f"{named(page)} links to {target}, which has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_python_compiles(page):
    for language, code in FENCE.findall(page.read_text()):
        if language == "python":
            compile(code, named(page), "exec")


def test_the_example_of_the_readme_runs_as_pasted():
    code = next(code for language, code in FENCE.findall(README.read_text()) if language == "python")
    looked_at = """
import numpy
from shapes.language import check_picture
print([check_picture(numpy.asarray(image), prompt).accuracy for image, prompt in zip(images, prompts, strict=True)])
"""
    words = [sys.executable, "-c", code + looked_at]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.match(r"computed \d+, approximated [1-9]\d* of \d+ block calls", done.stdout)
    assert json.loads(done.stdout.splitlines()[-1]) == [1.0] * 5, "the colours and shapes of the prompts, cached or not"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_exist(page):
    for command, action in COMMAND.findall(page.read_text()):
        assert command in catalogue.COMMANDS, f"{named(page)} names the command {command}"
        assert not action or command not in GROUPS or action in GROUPS[command], f"{named(page)}: {command} {action}"


@pytest.fixture(scope="module")
def flags() -> set[str]:
    """Return every flag of a command, of xDiT's or of a script, without its dashes."""
    known = {flag.removeprefix("--") for flag in names(ENGINE)}
    adders = [command.add_arguments for command in OWN]
    adders += [batch.add_submit, batch.add_run, batch.add_status]
    adders += [batch.add_job, batch.add_export]
    adders += [calibrations.add_list, calibrations.add_remove, calibrations.add_export]
    for add in adders:
        own = argparse.ArgumentParser(add_help=False)
        add(own)
        known |= {flag.removeprefix("--") for flag in own._option_string_actions}
    for script in (ROOT / "scripts").glob("*.*"):
        known |= set(FLAG.findall(script.read_text()))
    return known | OTHERS


@pytest.mark.parametrize("page", [README, *sorted(ROOT.glob("docs/**/*.md"))], ids=named)
def test_flags_exist(page, flags):
    unknown = set(FLAG.findall(page.read_text())) - flags
    assert not unknown, f"{named(page)} names {', '.join(sorted(unknown))}"
