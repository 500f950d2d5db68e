"""A plan as a table: with rich where it is installed, else in plain characters."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import units

if TYPE_CHECKING:
    from .planner import Plan, Row

COLUMNS = ("method", "ms/step", "exposed", "kernels", "wire", "MB/rank", "ratio", "pays", "vs fp32", "vs bf16")
TIME_ALONE = "(time per step alone: how many steps a loss takes with each method is not predicted)"


def cells(row: Row) -> tuple[str, ...]:
    """One line: times in milliseconds, bytes in megabytes that a rank sends."""
    p = row.prediction
    return (
        row.short,
        *(f"{1e3 * value:.1f}" for value in (p.seconds, p.exposed, p.kernels, p.wire)),
        f"{p.sent / 1e6:.2f}",
        f"{p.ratio:.1f}x",
        "-" if row.pays is None else ", ".join(span(*bounds) for bounds in row.pays) or "no link",
        *("-" if gain is None else f"{gain:.2f}x" for gain in (row.over_fp32, row.over_bf16)),
    )


def span(low: float, high: float) -> str:
    """Between which rates a method pays.

    >>> span(0.0, 3e9), span(2e9, float("inf")), span(1e6, 2e6), span(0.0, float("inf"))
    ('< 3 Gbit/s', '> 2 Gbit/s', '1 to 2 Mbit/s', 'any link')
    """
    if high == float("inf"):
        return f"> {units.rate(low)}" if low else "any link"
    number, unit = units.rate(low).split(" ", 1)
    first = number if units.rate(high).endswith(f" {unit}") else units.rate(low)
    return f"{first} to {units.rate(high)}" if low else f"< {units.rate(high)}"


def title(plan: Plan) -> str:
    """What was planned, in one line."""
    return (
        f"{plan.model}: {plan.numel:,} elements in {len(plan.buckets)} bucket{'s' * (len(plan.buckets) != 1)}, "
        f"{plan.world} workers, {plan.link}, {units.duration(plan.compute)} of computation; kernels on "
        "this machine's CPU"
    )


def advice(plan: Plan) -> str:
    """What to do, and why."""
    found = plan.recommendation
    return f"{found.line}\n  ({found.reason})\n  {TIME_ALONE}"


def text(plan: Plan) -> str:
    """The table in plain characters."""
    lines = [COLUMNS, *(cells(row) for row in plan.rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    body = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([title(plan), "", *(line.rstrip() for line in body), "", advice(plan)])


def show(plan: Plan) -> None:
    """Prints the table, and under it the recommendation."""
    try:
        from ..core.optional import need
        from ..core.tables import table

        console = need("rich.console", "plan").Console(soft_wrap=False, highlight=False)
        if console.width < 120:
            raise ImportError("too narrow for a table that folds nothing")
        console.print(table(title(plan), COLUMNS, map(cells, plan.rows)))
        print()
        print(advice(plan))
    except ImportError:
        print(text(plan))
