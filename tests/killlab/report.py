"""The report: a summary for the terminal, and one page that needs no other file.

Owns words and layout; knows only results and their figures. The page is drawn by `page.html` from the data that is put
into it here.
"""

import datetime
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.killlab.cluster import ROLES_OF
from tests.killlab.lab import Result
from tests.killlab.measure import UNNOTICED, Bucket, Figures, Latency, counts, increments, lost_and_doubled, problems
from tests.killlab.mix import Mix
from tests.support import machine
from tests.support.history import Kind, Outcome

_TEMPLATE: Final = Path(__file__).with_name("page.html")
_SHOWN_KILLS_MAX: Final = 40
_OUTCOMES: Final = {
    Outcome.OK: "done",
    Outcome.NOT_MET: "condition not met",
    Outcome.REFUSED: "refused",
    Outcome.UNKNOWN: "unknown",
}
_KINDS: Final = {
    Kind.GET: "read",
    Kind.READ: "read of several keys",
    Kind.PUT: "put",
    Kind.DELETE: "delete",
    Kind.CLEAR: "clear",
    Kind.CAS: "compare-and-set",
    Kind.BATCH: "batch",
    Kind.COUNT: "increment",
}


# For the terminal ----------------------------------------------------------------------------------------


def summary(result: Result, figures: Figures) -> str:
    """What happened, in lines."""
    sections = [
        _load_lines(result, figures),
        _outcome_lines(figures),
        _kill_lines(result, figures),
        _role_lines(figures),
        _verdict_lines(result, figures),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines)


def _load_lines(result: Result, figures: Figures) -> list[str]:
    options = result.options
    lines = [
        f"{figures.requests:,} requests of {options.clients} clients in {figures.seconds:.1f} s"
        f" ({figures.throughput:,.0f}/s), {figures.acknowledged_writes:,} of them writes",
        f"failed: {_counts(figures.failed)}",
    ]
    if figures.latency:
        lines.insert(1, "latency: p50 {:.1f} ms, p99 {:.1f} ms, max {:.1f} ms".format(*_values(figures.latency)))
    return lines


def _outcome_lines(figures: Figures) -> list[str]:
    rows = [(str(kind), *(f"{count:,}" for count in counts)) for kind, *counts in _outcome_rows(figures)]
    return _table(("request", *_OUTCOMES.values()), rows) if rows else []


def _outcome_rows(figures: Figures) -> list[tuple[str | int, ...]]:
    return [(_KINDS[kind], *(counts[outcome] for outcome in _OUTCOMES)) for kind, counts in figures.outcomes.items()]


def _kill_lines(result: Result, figures: Figures) -> list[str]:
    rows = [
        (f"{each.at_s:.2f} s", each.kill.what, str(each.kill.pid), _silence(each.silence_s), _counts(each.failed))
        for each in figures.effects
    ]
    shown = rows[:_SHOWN_KILLS_MAX]
    lines = _table(("at", "killed", "pid", "silence", "requests failed"), shown) if rows else []
    if len(rows) > len(shown):
        lines.append(f"… and {len(rows) - len(shown)} more")
    if result.not_carried_out:
        orders = ", ".join(str(order) for order in result.not_carried_out)
        lines.append(f"not carried out, because there was no such process: {orders}")
    return lines


def _role_lines(figures: Figures) -> list[str]:
    rows = [
        (
            role,
            str(len(effects)),
            _silence(effects[0].silence_s),
            _silence(effects[len(effects) // 2].silence_s),
            str(sum(each.failed.total() for each in effects)),
        )
        for role, effects in figures.by_role().items()
    ]
    return _table(("role", "kills", "longest silence", "median", "requests failed"), rows) if rows else []


def _verdict_lines(result: Result, figures: Figures) -> list[str]:
    lines = [f"{'ok ' if good else '-- ' if good is None else 'BAD'} {text}" for good, text in checks(result, figures)]
    lines += (
        ["", *("\n" + str(violation) for violation in result.verdict.violations)] if result.verdict.violations else []
    )
    found = problems(result, figures)
    lines += ["", *(f"NOT WELL: {problem}" for problem in found)] if found else ["", "all is well"]
    if result.evidence:
        lines.append(f"data and log of the server: {result.evidence}")
    lines.append(f"to repeat this: --seed {result.options.seed}")
    return lines


def checks(result: Result, figures: Figures) -> list[tuple[bool | None, str]]:
    """What was verified, and whether it holds; None where there was nothing to verify."""
    verdict = result.verdict
    lost, doubled = lost_and_doubled(result)
    is_read = bool(result.reads_at_rest) and not result.unread
    often = ("never", "once", "twice, the second time after a SIGKILL of all and a start")[result.reads_at_rest]
    least, most = increments(result)
    return [
        (not lost, f"lost writes: {lost}"),
        (not doubled, f"writes applied twice, or undone: {doubled}"),
        (
            verdict.is_linearizable,
            f"linearizable: {'yes' if verdict.is_linearizable else 'no'} ({verdict.operations:,} operations on"
            f" {verdict.keys:,} keys, judged in {result.judged_s:.1f} s)",
        ),
        (
            least <= result.counter <= most if most and result.counter is not None else None,
            f"the counter: {result.counter} after {least:,} increments, and {most - least:,} of unknown outcome"
            if most
            else "the counter: not incremented",
        ),
        (is_read, f"every key was read at the end: {often}"),
        *_checks_of_counts(result),
        *(_check_of_role(role, figures) for role in UNNOTICED if role in ROLES_OF[result.options.engine]),
    ]


def _checks_of_counts(result: Result) -> list[tuple[bool | None, str]]:
    if not result.puts_counted:
        return []
    wrong, exact = counts(result)
    text = f"keys of whose puts the engine counts too many or too few: {len(wrong)}, of {exact} exactly known"
    return [(not wrong, text)]


def _check_of_role(role: str, figures: Figures) -> tuple[bool | None, str]:
    effects = [effect for effect in figures.effects if effect.kill.what == role]
    failed = sum(effect.failed.total() for effect in effects)
    return (
        failed == 0 if effects else None,
        f"requests failed when {role} was killed: {failed if effects else 'it was not'}",
    )


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(titles, *rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (titles, *rows)
    ]


def _counts(failed: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in failed.items()) or "none"


def _silence(seconds: float) -> str:
    if seconds == 0:
        return "none"
    return f"{seconds * 1000:.0f} ms" if seconds < 0.9995 else f"{seconds:.2f} s"


# The page ------------------------------------------------------------------------------------------------


def page(result: Result, figures: Figures, arguments: Iterable[str]) -> str:
    """The page, as HTML."""
    data = json.dumps(_page_data(result, figures, arguments), separators=(",", ":"))
    return _TEMPLATE.read_text(encoding="utf-8").replace("/*DATA*/", data.replace("<", "\\u003c"))


def _page_data(result: Result, figures: Figures, arguments: Iterable[str]) -> dict[str, Any]:
    return {
        "date": datetime.datetime.now().strftime("%-d %B %Y, %H:%M"),
        "problems": problems(result, figures),
        "checks": checks(result, figures),
        "explained": [str(violation) for violation in result.verdict.violations],
        "seconds": figures.seconds,
        "clients": result.options.clients,
        "requests": figures.requests,
        "acknowledged": figures.acknowledged_writes,
        "latency": figures.latency and vars(figures.latency),
        "failed": figures.failed,
        "bucket_ms": figures.bucket_ms,
        "outcomes": [("request", *_OUTCOMES.values()), *_outcome_rows(figures)],
        "buckets": [_bucket_data(bucket) for bucket in figures.buckets],
        "kills": [
            {
                "at": round(effect.at_s, 4),
                "what": effect.kill.what,
                "pid": effect.kill.pid,
                "failed": effect.failed,
                "silence": effect.silence_s,
            }
            for effect in figures.effects
        ],
        "circumstances": _circumstances(result, arguments),
    }


def _bucket_data(bucket: Bucket) -> dict[str, Any]:
    latency = bucket.latency and [round(value, 3) for value in _values(bucket.latency)]
    return {"reads": bucket.reads, "writes": bucket.writes, "latency": latency, "failed": bucket.failed}


def _values(latency: Latency) -> tuple[float, float, float]:
    return latency.p50, latency.p99, latency.max


def _shares(mix: Mix) -> str:
    return ", ".join(f"{share:.0%} {name.replace('_', ' ')}" for name, share in mix._asdict().items() if share)


def _circumstances(result: Result, arguments: Iterable[str]) -> list[tuple[str, str]]:
    options = result.options
    orders = ", ".join(str(order) for order in result.not_carried_out)
    load = (
        f"{options.clients} clients on {options.keys:,} keys, each waiting for its answer;"
        f" {_shares(options.mix)}, values of {options.value_bytes} bytes"
    )
    return [
        ("command", shlex.join(["python", "-m", "tests.killlab", *arguments])),
        ("seed", str(options.seed)),
        ("load", load + (f"; {options.preload:,} further keys" if options.preload else "")),
        ("engine", options.engine + (f", shared by {options.servers} servers" if options.servers > 1 else "")),
        ("server flags", " ".join(options.server_flags)),
        *([("not carried out", f"{orders}: there was no such process")] if orders else []),
        ("machine", machine.machine()),
        ("system", machine.system()),
        ("versions", ", ".join(f"{name} {version}" for name, version in machine.versions().items())),
    ]
