"""A plan on a terminal: a table of rich's where that is installed and there is room, else plain characters."""

from __future__ import annotations

from .result import Plan


def show(plan: Plan) -> None:
    """Prints the table, and under it the recommendation."""
    try:
        from ..core.optional import need
        from ..core.tables import table

        console = need("rich.console", "plan").Console(soft_wrap=False, highlight=False)
        if console.width < 120:
            raise ImportError("too narrow for a table that folds nothing")
        console.print(table(plan.title, plan.columns, (row.cells() for row in plan.rows)))
        print()
        print(plan.advice)
    except ImportError:
        print(plan)
