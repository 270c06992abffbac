"""Rows as one parameter of a statement.

DuckDB takes as long over each value of a parameter as over a row, and ten times as long where pandas is not to be found, for which it
looks at each value again. So what may be many rows travels as one text.
"""

import json
from collections.abc import Iterable, Sequence

# A table of one column ``row``, a list of texts counted from 1, to be cast; its parameter is what ``as_text`` returns.
ROWS = """(SELECT unnest(from_json(?, '[["VARCHAR"]]')) AS row)"""


def as_text(rows: Iterable[Sequence[object]]) -> str:
    """Return rows of what JSON can say: texts, integers and None; fractions as ``repr`` gives them, since JSON has no infinity."""
    return json.dumps([*rows])
