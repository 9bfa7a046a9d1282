"""Draw frontiers: PSNR against how many times less block compute is spent, as PNG files or as SVG inside a page."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TICKS = (1, 1.5, 2, 3, 4, 5, 6)
OURS = ("#c8102e", "#f08a5d")
OTHERS = (
    *("#1f6fb4", "#2a9d5c", "#8e5bb5", "#b8860b", "#1aa6b7", "#7a5c48", "#d05fa2", "#5d6878"),
    *("#9aab2f", "#4455aa", "#7fb8e6", "#83c99b", "#c3a5dc", "#e0bd62", "#a08b80", "#e8a9cd"),
)
Place = tuple[float, float]  # (block FLOPs saved, times; PSNR in dB)


@dataclass(frozen=True)
class Curve:
    """One line of a panel.

    Attributes:
        label: in the legend, which has each label once for all panels.
        line: places that are joined.
        colour, style: as matplotlib knows them; the style is that of the line.
        bold: draw it thick, and over the others.
        dots: marked places, those of the line where none are given.
        tips: what a page says of each dot.
    """

    label: str
    line: Sequence[Place]
    colour: str
    style: str = "-"
    bold: bool = False
    dots: Sequence[Place] = ()
    tips: Sequence[str] = ()


def draw(panels: Mapping[str, Sequence[Curve]], path: Path, about: Mapping[str, str] | None = None) -> Path:
    """Write one panel for each title as a PNG, with one legend for all below them; return the path.

    `about` goes into its metadata.
    """
    figure = _figure(panels, (max(8.0, 3.3 * len(panels)), 5.6))
    lines = {str(line.get_label()): line for axes in figure.axes for line in axes.get_legend_handles_labels()[0]}
    figure.legend(list(lines.values()), list(lines), ncols=4, fontsize=8, frameon=False, loc="outside lower center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata=dict(about or {}))
    return path


def chart(curves: Sequence[Curve], salt: str) -> str:
    """Return one panel as SVG: groups carry `data-peer`, dots `data-tip`. `salt` keeps ids apart within a page."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        _figure({"": curves}, (7.6, 4.3)).savefig(text, format="svg", transparent=True)
    root = ElementTree.fromstring(text.getvalue())
    _plain(root)
    for number, curve in enumerate(curves):
        for group in root.iter("g"):
            if group.get("id") in (f"line-{number}", f"dots-{number}"):
                _tell(group, curve)
    return ElementTree.tostring(root, encoding="unicode")


def _figure(panels: Mapping[str, Sequence[Curve]], size: tuple[float, float]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (title, curves) in zip(row, panels.items(), strict=True):
        _panel(axes, title, curves)
    row[0].set_ylabel("PSNR against uncached, dB")
    return figure


def _panel(axes: Any, title: str, curves: Sequence[Curve]) -> None:
    for number, curve in enumerate(curves):
        width, size, above = (2.6, 5, 4) if curve.bold else (1.1, 3, 3)
        x, y = zip(*curve.line, strict=True)
        axes.plot(x, y, curve.style, color=curve.colour, linewidth=width, zorder=above, gid=f"line-{number}")
        x, y = zip(*(curve.dots or curve.line), strict=True)
        axes.plot(x, y, "o", color=curve.colour, markersize=size, zorder=above, gid=f"dots-{number}")
        axes.plot([], [], curve.style, marker="o", color=curve.colour, linewidth=width, label=curve.label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(TICKS, [f"{tick:g}x" for tick in TICKS])
    axes.minorticks_off()
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("compute reduction")
    axes.grid(alpha=0.3)


def _plain(root: ElementTree.Element) -> None:
    """Drop name spaces, which HTML knows by itself, and metadata: the page shall hold no address."""
    for metadata in root.findall("{*}metadata"):
        root.remove(metadata)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for name in [name for name in element.attrib if name.startswith("{")]:
            element.set(name.rpartition("}")[2], element.attrib.pop(name))


def _tell(group: ElementTree.Element, curve: Curve) -> None:
    group.set("class", "line ours" if curve.bold else "line")
    group.set("data-peer", curve.label)
    for dot, tip in zip(group.iter("use"), curve.tips, strict=False):
        dot.set("data-tip", tip)
