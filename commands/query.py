"""``weft sql``: one query on the published store, or a prompt."""

import sys
from argparse import ArgumentParser, Namespace

import polars as pl

from ..pipeline.errors import StoreError
from .output import Printer


def options(parser: ArgumentParser) -> None:
    parser.add_argument("query", nargs="?", help="a query; without one, a prompt (or standard input)")
    parser.add_argument(
        "--format", choices=("table", "csv", "json", "parquet"), default="table", help="format of the rows (default: table)"
    )


def sql(chosen: Namespace) -> int:
    """Run one query, or those typed at a prompt."""
    from ..analytics.store.reader import Reader

    folder = chosen.data / "store"
    if chosen.query is None and sys.stdin.isatty():
        return _prompt(folder, chosen.format)
    _answer(Reader(folder), sys.stdin.read() if chosen.query is None else chosen.query, chosen.format)
    return 0


def _answer(reader, query: str, form: str) -> None:
    try:
        printer = Printer(form)
        printer.add(_frame(reader, query))
        printer.close()
    finally:
        reader.close()


def _frame(reader, query: str) -> pl.DataFrame:
    try:
        return reader.frame(query)
    except pl.exceptions.PolarsError as error:
        problem = str(error).split(" Hint:", maxsplit=1)[0].rstrip(".")
        raise StoreError(f"a column cannot be shown ({problem})", "cast it, as in column::VARCHAR") from None


def _prompt(folder, form: str) -> int:
    import contextlib

    from ..analytics.store.reader import Reader

    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # input() gets history and line editing by this import alone
    Reader(folder).close()
    print(
        "Weft SQL on the newest snapshot. Views: ports_1s, bursts, latency_1s, roce_1s, groups_1s, samples ...\n"
        "End a query with ';', leave with Ctrl-D."
    )
    text = ""
    while True:
        try:
            text += input("weft> " if not text else "  ... ") + "\n"
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            print()
            text = ""
            continue
        if text.strip() in ("exit", "quit", ".quit"):
            return 0
        if text.rstrip().endswith(";"):
            try:
                _answer(Reader(folder), text, form)
            except StoreError as error:
                print(error, file=sys.stderr)
            text = ""
