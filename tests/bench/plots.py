"""The plots, as PNG files: throughput and latency against what was varied, PUT beside GET, a line for each target.

Owns their look; knows only rows of figures.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from tests.bench.cases import HELLO, PUT_AND_GET, SERVER, Section, human_bytes, human_us
from tests.bench.figures import Row, Spread
from tests.bench.report import Plot

_INK, _SOFT, _GRID, _PAPER, _BAD = "#1c1e21", "#5d6269", "#e9e6df", "#ffffff", "#c22f3d"
_COLOURS: Final[Mapping[str, str]] = {SERVER: "#2c6fad", HELLO: "#8d929a", "etcd": "#c28412", "redis": "#8451cf"}
_COLOURS_OF_OTHERS: Final = ("#147a73", "#d9623f", "#a04572", "#5b7d2e")
_STYLE: Final = {
    "font.family": ["DejaVu Sans"],
    "font.size": 10.5,
    "text.color": _INK,
    "axes.edgecolor": "#d5d1c8",
    "axes.labelcolor": _SOFT,
    "axes.facecolor": _PAPER,
    "figure.facecolor": _PAPER,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _GRID,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "lines.linewidth": 2.0,
    "lines.markersize": 5.5,
}


class _Kind(NamedTuple):
    """What a plot shows."""

    section: Section
    name: str
    title: str
    caption: str
    x: Callable[[Row], int]
    x_label: str
    is_latency: bool

    @property
    def shows_bytes(self) -> bool:
        return self.section is Section.VALUES


_SHADE: Final = "The shade is from the slowest to the fastest round."
_CROSS: Final = "A red cross marks a load with errors."
_KINDS: Final = (
    _Kind(
        Section.CONNECTIONS,
        "throughput-connections",
        "Throughput and the number of connections",
        f"Values of 100 bytes, 1,000 keys; a PUT is answered when it is on the disk. {_SHADE} {_CROSS}",
        lambda row: row.case.connections,
        "connections",
        False,
    ),
    _Kind(
        Section.CONNECTIONS,
        "latency-connections",
        "Latency and the number of connections",
        f"The median (solid) and the 99th percentile (dotted). Values of 100 bytes, 1,000 keys. {_CROSS}",
        lambda row: row.case.connections,
        "connections",
        True,
    ),
    _Kind(
        Section.VALUES,
        "throughput-values",
        "Throughput and the size of a value",
        f"64 connections; 8 for values of 1 MiB. The hello-world reads no body and answers 11 bytes. {_SHADE} {_CROSS}",
        lambda row: row.case.value_bytes,
        "size of a value",
        False,
    ),
    _Kind(
        Section.KEYS,
        "latency-keys",
        "Latency and the number of keys that are stored",
        f"64 connections, values of 100 bytes. The median (solid) and the 99th percentile (dotted). {_CROSS}",
        lambda row: row.case.keys,
        "keys",
        True,
    ),
)


def draw(rows: Sequence[Row], directory: Path) -> list[Plot]:
    """Draw each plot that there are rows for."""
    plots = []
    for kind in _KINDS:
        shown = [row for row in rows if row.case.section is kind.section and row.throughput]
        if shown:
            path = directory / f"{kind.name}.png"
            with mpl.rc_context(_STYLE):
                _figure(kind, shown).savefig(path, dpi=160)
            plots.append(Plot(path, kind.title, kind.caption))
    return plots


def _figure(kind: _Kind, rows: Sequence[Row]) -> Figure:
    figure = Figure(figsize=(11, 4.7), layout="constrained")
    panels = figure.subplots(1, len(PUT_AND_GET), sharey=True)
    names = list(dict.fromkeys(row.target for row in rows))
    for panel, operation in zip(panels, PUT_AND_GET, strict=True):
        of_operation = [row for row in rows if row.case.operation is operation]
        _axes(panel, kind, of_operation)
        panel.set_title(operation.value, loc="left", fontweight="bold", fontsize=11.5)
        for name in names:
            line = sorted((row for row in of_operation if row.target == name), key=kind.x)
            _draw_line(panel, kind, line, _colour(name, names))
    panels[0].set_ylabel("latency" if kind.is_latency else "requests a second")
    if panels[0].get_yscale() == "linear":
        panels[0].set_ylim(bottom=0)
    figure.suptitle(kind.title, x=0.01, ha="left", fontsize=14, fontweight="bold")
    figure.legend(handles=_legend(kind, names), loc="outside lower center", ncols=len(names) + 2, frameon=False)
    return figure


def _colour(name: str, names: Sequence[str]) -> str:
    others = [each for each in names if each not in _COLOURS]
    return _COLOURS.get(name) or _COLOURS_OF_OTHERS[others.index(name) % len(_COLOURS_OF_OTHERS)]


def _axes(panel: Axes, kind: _Kind, rows: Iterable[Row]) -> None:
    ticks = sorted({kind.x(row) for row in rows})
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(FixedLocator(ticks))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(
        FuncFormatter(lambda x, _: human_bytes(round(x)) if kind.shows_bytes else f"{x:,.0f}")
    )
    panel.set_xlabel(kind.x_label)
    if kind.is_latency:
        panel.set_yscale("log")
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=30))
        panel.yaxis.set_minor_locator(NullLocator())
        panel.yaxis.set_major_formatter(FuncFormatter(lambda us, _: human_us(us)))
        return
    if kind.shows_bytes:
        panel.set_yscale("log")
    panel.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:,.0f}"))


def _draw_line(panel: Axes, kind: _Kind, rows: Sequence[Row], colour: str) -> None:
    if not rows:
        return
    x = [kind.x(row) for row in rows]
    shown = [_spread(row.p50_us if kind.is_latency else row.throughput) for row in rows]
    panel.plot(x, [each.median for each in shown], color=colour, marker="o")
    panel.fill_between(x, [each.low for each in shown], [each.high for each in shown], color=colour, alpha=0.14, lw=0)
    if kind.is_latency:
        panel.plot(x, [_spread(row.p99_us).median for row in rows], color=colour, marker="o", ls=":", markersize=3.5)
    marred = [(kind.x(row), each.median) for row, each in zip(rows, shown, strict=True) if row.is_marred]
    panel.scatter([x for x, _ in marred], [y for _, y in marred], color=_BAD, marker="x", s=70, zorder=5)


def _spread(spread: Spread | None) -> Spread:
    assert spread, "a row with a throughput has all of them"
    return spread


def _legend(kind: _Kind, names: Sequence[str]) -> list[Line2D]:
    lines = [Line2D([], [], color=_colour(name, names), marker="o", label=name) for name in names]
    if kind.is_latency:
        lines.append(Line2D([], [], color=_SOFT, label="p50"))
        lines.append(Line2D([], [], color=_SOFT, ls=":", label="p99"))
    return lines
