"""The results as files: results.json for programs, results.md and index.html for people.

Owns words, tables and layout; knows only what was measured and its figures, and plots as pictures that are there. The
page needs nothing but itself: the plots are in it.
"""

import base64
import dataclasses
import datetime
import html
import json
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from string import Template
from typing import Any, Final, NamedTuple

from tests.bench import figures, senders, targets
from tests.bench.cases import BATCH_KEYS, PUT_AND_GET, SERVER, Case, Operation, Section, human_bytes, human_us
from tests.bench.figures import LogdFigures, Row, Spread, SyncFigures
from tests.bench.logd_alone import SENDERS
from tests.bench.options import Options
from tests.bench.rounds import Measured
from tests.support import machine

_TEMPLATE: Final = Path(__file__).with_name("page.html")
_ROLES: Final = ("worker", "logd", "checkpoint", "gunicorn", "supervisor")
_CPU_MIN_US: Final = 0.05
_FILE_SYSTEMS_IN_MEMORY: Final = ("tmpfs", "ramfs")


@dataclass(frozen=True)
class Results:
    """All that is written."""

    circumstances: dict[str, str]
    problems: list[str]
    rows: list[Row]
    notes: dict[str, str]
    sync: SyncFigures | None
    logd: LogdFigures | None
    measured: Measured


class Plot(NamedTuple):
    """A picture that was made."""

    path: Path
    title: str
    caption: str


class _Table(NamedTuple):
    """The first columns, as many as `words`, hold words; the others numbers."""

    title: str
    note: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    words: int


def collect(measured: Measured, options: Options, arguments: Iterable[str]) -> Results:
    """Bring together all that is written."""
    kind = machine.file_system(options.out)
    problems = list(measured.problems)
    if kind in _FILE_SYSTEMS_IN_MEMORY:
        problems.append(f"the data were on {kind}, in memory: figures of writes say nothing of a disk; see --out")
    if measured.is_interrupted:
        problems.append("interrupted: not everything was measured")
    return Results(
        circumstances=_circumstances(options, arguments, kind),
        problems=problems,
        rows=figures.rows(measured, [name for name, _ in options.peers]),
        notes={name: note for name, note in measured.notes.items() if note},
        sync=figures.of_sync(measured.sync),
        logd=figures.of_logd(measured.logd),
        measured=measured,
    )


def _circumstances(options: Options, arguments: Iterable[str], file_system: str) -> dict[str, str]:
    return {
        "date": datetime.datetime.now().strftime("%-d %B %Y, %H:%M"),
        "command": shlex.join(["./tests/bench/run.sh", *arguments]),
        "commit": machine.commit(),
        "machine": machine.machine(),
        "system": machine.system(),
        "file system": file_system,
        "load": f"wrk on the same machine; {options.seconds} s for each load, rounds: {options.rounds}",
        "workers": str(options.workers),
        "server flags": " ".join(options.server_flags),
        **machine.versions(),
        **targets.peer_versions(),
    }


def write(results: Results, plots: Sequence[Plot], directory: Path) -> list[Path]:
    """Write all files; which they are."""
    texts = {"results.json": _json(results), "results.md": markdown(results, plots), "index.html": page(results, plots)}
    for name, text in texts.items():
        (directory / name).write_text(text, encoding="utf-8")
    return [directory / name for name in texts]


# For programs --------------------------------------------------------------------------------------------


def _json(results: Results) -> str:
    """Everything, down to each sample."""
    samples = results.measured.samples
    found = {
        "circumstances": results.circumstances,
        "problems": results.problems,
        "notes": results.notes,
        "rows": [{**_plain(row), "samples": _plain(samples[row.case, row.target])} for row in results.rows],
        "sync": results.sync and {**_plain(results.sync), "samples": _plain(results.measured.sync)},
        "logd": results.logd and {**_plain(results.logd), "samples": _plain(results.measured.logd)},
    }
    return json.dumps(found, indent=1) + "\n"


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever the results are made of
    """The value as JSON can hold it."""
    if isinstance(value, Enum):
        return value.value
    if hasattr(value, "_asdict"):
        return {name: _plain(each) for name, each in value._asdict().items()}
    if dataclasses.is_dataclass(value):
        return {each.name: _plain(getattr(value, each.name)) for each in dataclasses.fields(value)}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return value


# Tables --------------------------------------------------------------------------------------------------


_VARIED: Final[Mapping[Section, tuple[str, str, Callable[[Case], str]]]] = {
    Section.HEADLINE: ("Headline", "connections", lambda case: f"{case.connections:,}"),
    Section.CONNECTIONS: ("Connections", "connections", lambda case: f"{case.connections:,}"),
    Section.VALUES: (
        "Values",
        "value",
        lambda case: f"{human_bytes(case.value_bytes)}, {case.connections} connections",
    ),
    Section.KEYS: ("Keys", "keys stored", lambda case: f"{case.keys:,}"),
    Section.CLUSTER: ("Three nodes of etcd", "connections", lambda case: f"{case.connections:,}"),
    Section.TRANSACTIONS: ("Conditions and batches", "connections", lambda case: f"{case.connections:,}"),
}


def _tables(results: Results) -> list[_Table]:
    of_sections = [_section_table(section, results.rows) for section in _VARIED]
    return [table for table in (*of_sections, _sync_table(results.sync), _logd_table(results.logd)) if table]


def _section_table(section: Section, rows: Sequence[Row]) -> _Table | None:
    title, varied, show = _VARIED[section]
    chosen = [row for row in rows if row.case.section is section]
    if not chosen:
        return None
    peers = list(dict.fromkeys(name for row in chosen for name in row.ratio_to_peers))
    ratios = [f"of {name}" for name in (chosen[0].case.reference, *peers)]
    columns = ("", varied, "target", "requests/s", "from – to", *ratios, "p50", "p90", "p99", "max")
    note = (
        "Medians of the rounds; max is the greatest of all. CPU is for one request, by role; load is what sends them."
    )
    if bytes_per_key := figures.logd_bytes_per_key(chosen):
        note += f" The memory of logd grows by {bytes_per_key:.0f} bytes a key."
    if conditional := figures.times_a_put(chosen, Operation.CONDITIONAL_PUT):
        note += f" Conditional PUTs: {conditional:.2f} of plain ones."
    if batch := figures.times_a_put(chosen, Operation.BATCH, BATCH_KEYS):
        note += f" Batches of {BATCH_KEYS} puts: {batch:.1f} times the keys a second of single PUTs."
    cells = [_cells(row, show(row.case), peers) for row in sorted(chosen, key=_order)]
    return _Table(title, note, (*columns, "CPU µs/request", "logd RSS", "errors"), cells, 3)


def _order(row: Row) -> tuple[int, int, int, int]:
    """PUT before GET, small before large; within a case as they were measured."""
    case = row.case
    return list(Operation).index(case.operation), case.connections * (case.section is not Section.VALUES), *case[3:]


def _cells(row: Row, varied: str, peers: Iterable[str]) -> tuple[str, ...]:
    ratios = {row.case.reference: row.ratio, **{name: row.ratio_to_peers.get(name) for name in peers}}
    return (
        row.case.operation.value,
        varied,
        row.target,
        _maybe(row.throughput, lambda spread: f"{spread.median:,.0f}"),
        _maybe(row.throughput, lambda spread: f"{spread.low:,.0f} – {spread.high:,.0f}"),
        *(
            _maybe(each, lambda spread: f"{spread.median:.2f}") if row.target != name else ""
            for name, each in ratios.items()
        ),
        *(_maybe(spread, lambda spread: human_us(spread.median)) for spread in (row.p50_us, row.p90_us, row.p99_us)),
        _maybe(row.max_us, lambda spread: human_us(spread.high)),
        _cpu(row.cpu_us or {}),
        f"{row.rss_bytes['logd'] / 2**20:.0f} MiB" if row.rss_bytes and "logd" in row.rss_bytes else "",
        _errors(row),
    )


def _maybe(spread: Spread | None, show: Callable[[Spread], str]) -> str:
    return show(spread) if spread else ""


def _cpu(cpu_us: Mapping[str, float]) -> str:
    """What counts, those with a name in the project first."""
    roles = sorted(cpu_us, key=lambda role: (_ROLES.index(role) if role in _ROLES else len(_ROLES), role == "load"))
    return ", ".join(f"{role} {cpu_us[role]:.3g}" for role in roles if cpu_us[role] >= _CPU_MIN_US)


def _errors(row: Row) -> str:
    """Empty when all is well; else it cannot be overlooked."""
    found = [f"{count:,} {kind}" for kind, count in row.errors.items()]
    if row.failed_rounds:
        found.append(f"{row.failed_rounds} of the rounds failed")
    return f"⚠ {', '.join(found)}" if found else ""


def _sync_table(sync: SyncFigures | None) -> _Table | None:
    if not sync:
        return None
    names = {
        "PUT, one connection, p50": sync.put_p50_us,
        "bare write and sync of the same frame, p50": sync.bare_p50_us,
        "bare write and sync of the same frame, p99": sync.bare_p99_us,
        "PUT p50 minus bare sync p50": sync.difference_us,
    }
    cells = [
        (name, human_us(each.median), f"{human_us(each.low)} – {human_us(each.high)}") for name, each in names.items()
    ]
    note = "The bare sync appends to a growing file on the same disk. The difference is taken round by round."
    return _Table("One PUT and one sync", note, ("", "median", "from – to"), cells, 1)


def _logd_table(logd: LogdFigures | None) -> _Table | None:
    if not logd:
        return None
    named = [("durable writes", logd.writes, logd.write_cpu_us), ("reads", logd.reads, logd.read_cpu_us)]
    cells = [
        (name, f"{rate.median:,.0f}", f"{rate.low:,.0f} – {rate.high:,.0f}", f"{cpu_us.median:.2f}")
        for name, rate, cpu_us in named
    ]
    note = (
        f"Without HTTP: {SENDERS} senders, {senders.BATCH} values of {senders.VALUE_BYTES} bytes a message, up to"
        f" {senders.WINDOW} messages of each in flight."
    )
    return _Table("The log writer alone", note, ("", "a second", "from – to", "CPU of logd, µs each"), cells, 1)


# Markdown ------------------------------------------------------------------------------------------------


def markdown(results: Results, plots: Sequence[Plot]) -> str:
    """The tables and the plots, as Markdown."""
    parts = ["# What was measured", *(f"**{problem}**" for problem in results.problems)]
    parts += [f"{name}: {note}." for name, note in results.notes.items()]
    for table in _tables(results):
        parts += [f"## {table.title}", table.note, "\n".join(_markdown_lines(table))]
    parts += [f"![{plot.title}]({plot.path.name})\n\n{plot.caption}" for plot in plots]
    parts += [
        "## Circumstances",
        "\n".join(f"- {name}: {text}" for name, text in results.circumstances.items() if text),
    ]
    return "\n\n".join(parts) + "\n"


def _markdown_lines(table: _Table) -> list[str]:
    rules = ["---"] * table.words + ["---:"] * (len(table.columns) - table.words)
    return [f"| {' | '.join(cells)} |" for cells in (table.columns, rules, *table.rows)]


# The page ------------------------------------------------------------------------------------------------


def page(results: Results, plots: Sequence[Plot]) -> str:
    """The page, as HTML."""
    escaped = html.escape
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        over=escaped(f"Bench · {results.circumstances['date']}"),
        headline=escaped(_headline(results)),
        lede=escaped(_lede(results)),
        problems="".join(f'<p class="bad">{escaped(problem)}</p>' for problem in results.problems),
        tiles="".join(
            f"<div><b>{escaped(value)}</b><span>{escaped(label)}</span></div>" for value, label in tiles(results)
        ),
        plots="".join(map(_plot_html, plots)),
        notes=escaped(" ".join(f"{name}: {note}." for name, note in results.notes.items())),
        tables="".join(map(_table_html, _tables(results))),
        circumstances="".join(
            f"<dt>{escaped(name)}</dt><dd>{escaped(text)}</dd>" for name, text in results.circumstances.items() if text
        ),
    )


def _headline(results: Results) -> str:
    put, get = (_find(results.rows, operation, 64) for operation in PUT_AND_GET)
    if put and get and put.throughput and get.throughput:
        return f"{put.throughput.median:,.0f} durable writes a second, {get.throughput.median:,.0f} reads."
    return "What was measured."


def _lede(results: Results) -> str:
    put, get = (_find(results.rows, operation, 64) for operation in PUT_AND_GET)
    if not (put and get and put.ratio and get.ratio):
        return ""
    to_peers = "".join(
        f", {ratio.median:.0%} and {get.ratio_to_peers[name].median:.0%} of {name}"
        for name, ratio in put.ratio_to_peers.items()
        if name in get.ratio_to_peers
    )
    return (
        f"At 64 connections, with values of 100 bytes: {put.ratio.median:.0%} and {get.ratio.median:.0%} of what a bare"
        f" hello-world of the same stack answers{to_peers}; under the same load, in the same minute."
    )


def _find(rows: Iterable[Row], operation: Operation, connections: int) -> Row | None:
    """The row of the server for a load that more than one section has."""
    sections = (Section.HEADLINE, Section.CONNECTIONS)
    of_server = [row for row in rows if row.target == SERVER and row.case.section in sections]
    return next((row for row in of_server if row.case[1:3] == (operation, connections)), None)


def tiles(results: Results) -> list[tuple[str, str]]:
    """The few figures that a reader looks for first, and what each is."""
    found = []
    for operation in PUT_AND_GET:
        if (row := _find(results.rows, operation, 64)) and row.p99_us:
            found.append((human_us(row.p99_us.median), f"99 % of {operation.value}s within, 64 connections"))
        if (row := _find(results.rows, operation, 1)) and row.p50_us:
            found.append((human_us(row.p50_us.median), f"median of a {operation.value}, one connection"))
    if results.sync:
        found.append((human_us(results.sync.difference_us.median), "a PUT takes longer than a bare sync"))
    if results.logd:
        found.append((f"{results.logd.writes.median:,.0f}", "durable writes a second, logd alone"))
        found.append((f"{results.logd.reads.median:,.0f}", "reads a second, logd alone"))
    return found


def _plot_html(plot: Plot) -> str:
    picture = base64.b64encode(plot.path.read_bytes()).decode()
    return (
        f'<figure class="card"><img alt="{html.escape(plot.title)}" src="data:image/png;base64,{picture}">'
        f"<figcaption>{html.escape(plot.caption)}</figcaption></figure>"
    )


def _table_html(table: _Table) -> str:
    head = "".join(_cell("th", text, n >= table.words) for n, text in enumerate(table.columns))
    body = "".join(f"<tr{_row_class(cells)}>{_row_html(table, cells)}</tr>" for cells in table.rows)
    return (
        f"<h2>{html.escape(table.title)}</h2><p class=note>{html.escape(table.note)}</p>"
        f"<div class=scroll><table><tr>{head}</tr>{body}</table></div>"
    )


def _row_html(table: _Table, cells: Sequence[str]) -> str:
    return "".join(_cell("td", text, n >= table.words) for n, text in enumerate(cells))


def _row_class(cells: Sequence[str]) -> str:
    if cells[-1].startswith("⚠"):
        return ' class="bad"'
    return ' class="ours"' if SERVER in cells[:3] else ""


def _cell(element: str, text: str, is_number: bool) -> str:
    return f"<{element}{' class=n' if is_number else ''}>{html.escape(text)}</{element}>"
