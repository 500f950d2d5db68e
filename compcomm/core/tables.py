"""Tables for the terminal. They need rich (`compcomm[bench]`), which is imported when one is made."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from .optional import need


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], note: str = "") -> Any:
    """A rich table: the first column is a name, folded where the terminal is narrow and never cut; then numbers.

    Without frames: the names of reducers are long, and the quickstart's table is to fit into 100 columns.
    """
    made = need("rich.table", "table").Table(
        title=title,
        caption=note or None,
        title_justify="left",
        caption_justify="left",
        box=need("rich.box", "table").SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for i, name in enumerate(columns):
        made.add_column(name, justify="right" if i else "left", overflow="fold", no_wrap=bool(i), vertical="bottom")
    for row in rows:
        made.add_row(*row)
    return made
