"""The SQL macros of every published store, which users can call in their own queries.

A histogram is ``STRUCT(i SMALLINT, c UINTEGER)[]`` (UBIGINT when merged) with the buckets of ``pipeline/histogram.py``.
"""

# The number of codewords with i symbol errors falls about geometrically with i. A straight line through the logarithms of bins 1 to
# 15 is extrapolated to 16 to 20 errors, which are not corrected, as a share of the codewords of bins 0 to 15 (SONiC's design of the
# frame loss ratio). Bins of ten codewords or fewer are left out; one point gives no line.
_N = "list_count(list_transform(bins[2:16], lambda b: CASE WHEN b > 10 THEN b END))"
_X, _Y, _XX, _XY = (
    f"list_sum(list_transform(bins[2:16], lambda b, i: CASE WHEN b > 10 THEN {term} END))"
    for term in ("i", "log10(b)", "i * i", "i * log10(b)")
)

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
    "weft_slope(n, x, y, xx, xy)": (
        "CASE WHEN n > 1 THEN (n * xy - x * y) / (n * xx - x * x) END",
        "the slope of the least squares line, from the number of points and the sums of x, y, x squared and x times y",
    ),
    "weft_cer_tail(n, x, y, slope, codewords)": (
        "list_sum(list_transform(range(16, 21), lambda j: pow(10, y / n + slope * (j - x / n)))) / codewords",
        "the share of the codewords that a line of logarithms puts at 16 to 20 symbol errors",
    ),
    "weft_cer_predicted(bins)": (
        f"weft_cer_tail({_N}, {_X}, {_Y}, weft_slope({_N}, {_X}, {_Y}, {_XX}, {_XY}), list_sum(bins[1:16]))",
        "the share of codewords that FEC will not correct, predicted from a list of those with 0 to 15 symbol errors; NULL where fewer "
        "than two of 1 to 15 have come more than ten times",
    ),
    "weft_flr(cer, speed_bps)": (
        """cer * (1 + 8 * CASE WHEN speed_bps >= 800000000000 THEN 4 WHEN speed_bps >= 200000000000 THEN 2 ELSE 1 END) / 8""",
        "the frame loss ratio of a codeword error ratio: a frame of 64 bytes meets one codeword, more where codewords are interleaved",
    ),
    "weft_share(a, b)": (
        "CASE WHEN b > 0 THEN CASE WHEN a > b THEN 1 ELSE a / b END END",
        "a / b, at most 1; NULL where b is not positive",
    ),
    "weft_ratio(a, b)": ("CASE WHEN b > 0 THEN a / b END", "a / b, NULL where b is not positive"),
}


def statements() -> list[str]:
    """Return the statements that create the macros."""
    return [f"CREATE OR REPLACE MACRO {head} AS {body}" for head, (body, _) in MACROS.items()]
