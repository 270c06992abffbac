"""The SQL macros that every published store holds; users call them in their own queries.

A histogram is ``STRUCT(i SMALLINT, c UINTEGER)[]`` (a merged one counts in UBIGINT), its buckets those of ``pipeline/histogram.py``.
"""

MACROS: dict[str, tuple[str, str]] = {
    "weft_bucket_value(i)": (
        """CASE WHEN i = 0 THEN 0.0 ELSE
            pow(2.0, (i - 1) // 64) * (1 + ((i - 1) % 64) / 64.0) + greatest(pow(2.0, (i - 1) // 64) / 64 - 1, 0) / 2 END""",
        "the value that bucket i of a histogram stands for",
    ),
    "weft_count(hist)": (
        "list_sum(list_transform(hist, lambda b: b.c))::UBIGINT",
        "how many samples a histogram holds",
    ),
    "weft_quantile(hist, q)": (
        """weft_bucket_value(list_reduce(hist, lambda a, b: CASE WHEN a.c >= a.t THEN a ELSE {'i': b.i, 'c': a.c + b.c, 't': a.t} END,
            {'i': NULL::SMALLINT, 'c': 0::UBIGINT, 't': greatest(ceil(q * weft_count(hist) - 1e-9), 1)}).i)""",
        "the smallest value that at least q of the samples do not exceed, within 1 %; NULL where there are none",
    ),
    "weft_merge(list_of_hist)": (
        """(SELECT list({'i': i, 'c': c} ORDER BY i) FROM (
            SELECT b.i AS i, sum(b.c)::UBIGINT AS c FROM (SELECT unnest(flatten(list_of_hist)) AS b) GROUP BY ALL))""",
        "one histogram of many: weft_merge(list(hist)) in a GROUP BY",
    ),
    "weft_variance(n, total, squares)": (
        "(n::HUGEINT * squares::HUGEINT - total::HUGEINT * total::HUGEINT)::DOUBLE / (n::DOUBLE * n::DOUBLE)",
        "the population variance from count, sum and sum of squares, exact until the last division",
    ),
    "weft_ratio(a, b)": ("CASE WHEN b > 0 THEN a / b END", "a / b, NULL where b is not positive"),
}


def statements() -> list[str]:
    """Return the statements that create the macros."""
    return [f"CREATE OR REPLACE MACRO {head} AS {body}" for head, (body, _) in MACROS.items()]
