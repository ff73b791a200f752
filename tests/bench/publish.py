"""The figures of the documents: a few rows in the README, all of them in docs/performance.md, and the plot.

Owns which results are shown there. In a document it writes what is between two marks, and nothing else.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tests.bench.cases import HELLO, PUT_AND_GET, SERVER, Operation, Section, human_us
from tests.bench.figures import Row, Spread
from tests.bench.report import Results

BEGIN: Final = "<!-- figures: written by ./tests/bench/run.sh --publish -->\n"
END: Final = "<!-- end of figures -->\n"
_PLOT: Final = "throughput-connections.png"
_README_CONNECTIONS: Final = (64, 1_024)
_COLUMNS: Final = ("connections", "requests/s", "ratio", "p50", "p99")
_CPU: Final = "CPU µs a request: workers, logd"


class NotPublished(Exception):
    """The results are not fit to be shown; says why. No document was changed."""


def publish(results: Results, directory: Path, root: Path) -> list[Path]:
    """Replace the figures in the documents below `root`, by results whose plots are in `directory`.

    Returns which files were written. Raises NotPublished.
    """
    rows = [row for row in results.rows if row.case.section is Section.CONNECTIONS]
    _check(results, rows)
    where = "{machine}, Python {Python}; {load}; {date}, commit {commit}.".format_map(results.circumstances)
    blocks = {
        root / "README.md": f"{where}\n\n{_few(rows)}",
        root / "docs/performance.md": f"{where}\n\n{_all(rows)}\n{_others(rows)}",
    }
    texts = {path: _replaced(path.read_text(encoding="utf-8"), block) for path, block in blocks.items()}
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    return [*texts, Path(shutil.copyfile(directory / _PLOT, root / "docs/throughput.png"))]


def _check(results: Results, rows: Sequence[Row]) -> None:
    if results.problems:
        raise NotPublished(results.problems[0])
    if marred := [row for row in rows if row.is_marred]:
        raise NotPublished(f"{marred[0].target}, {marred[0].case}: not every request was answered as it should be")
    measured = {(row.case.operation, row.case.connections) for row in rows if row.target == SERVER}
    if missing := [(each, n) for each in PUT_AND_GET for n in _README_CONNECTIONS if (each, n) not in measured]:
        raise NotPublished(f"{missing[0][0].value} at {missing[0][1]:,} connections was not measured")


def _replaced(text: str, block: str) -> str:
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise NotPublished(f"a document has no {BEGIN.strip()} … {END.strip()}")
    return f"{before}{begin}{block}{end}{after}"


# Tables --------------------------------------------------------------------------------------------------


def _few(rows: Sequence[Row]) -> str:
    shown = [row for row in rows if row.target == SERVER and row.case.connections in _README_CONNECTIONS]
    return _table(("", *_COLUMNS), shown, lambda row: (row.case.operation.value, *_cells(row)))


def _all(rows: Sequence[Row]) -> str:
    shown = [row for row in rows if row.target == SERVER]
    return _table(("", *_COLUMNS, _CPU), shown, lambda row: (row.case.operation.value, *_cells(row), _cpu(row)))


def _others(rows: Sequence[Row]) -> str:
    shown = [row for row in rows if row.target != SERVER]
    return _table(("", "", *_COLUMNS), shown, lambda row: (row.target, row.case.operation.value, *_cells(row)))


def _table(columns: Sequence[str], rows: Sequence[Row], show: Callable[[Row], tuple[str, ...]]) -> str:
    """In Markdown; the columns with a name hold numbers."""
    lines = [columns, ["---:" if name else "---" for name in columns], *map(show, sorted(rows, key=_order))]
    return "".join(f"| {' | '.join(cells)} |\n".replace("|  |", "| |") for cells in lines)


def _order(row: Row) -> tuple[bool, str, int, int]:
    name = "" if row.target in (SERVER, HELLO) else row.target
    return bool(name), name, list(Operation).index(row.case.operation), row.case.connections


def _cells(row: Row) -> tuple[str, ...]:
    ratio = f"{_median(row.ratio):.2f}" if row.ratio and row.target != HELLO else ""
    times = (human_us(_median(row.p50_us)), human_us(_median(row.p99_us)))
    return f"{row.case.connections:,}", f"{_median(row.throughput):,.0f}", ratio, *times


def _cpu(row: Row) -> str:
    used = row.cpu_us or {}
    return f"{used.get('worker', 0):.3g}, {used.get('logd', 0):.3g}"


def _median(spread: Spread | None) -> float:
    assert spread, "a row that is not marred has all of them"
    return spread.median
