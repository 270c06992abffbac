"""Rows as one parameter of a statement.

DuckDB binds one parameter value in the time of one row, and in ten times that where pandas is missing, which it looks for at
each value. So many rows are passed as one text.
"""

import json
from collections.abc import Iterable, Sequence

# A table with one column ``row``, a list of texts from index 1, to be cast; its parameter is the result of ``as_text``.
ROWS = """(SELECT unnest(from_json(?, '[["VARCHAR"]]')) AS row)"""


def as_text(rows: Iterable[Sequence[object]]) -> str:
    """Return rows of texts, integers and None as JSON; pass floats by ``repr``, because JSON has no infinity."""
    return json.dumps([*rows])
