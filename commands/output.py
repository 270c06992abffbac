"""Rows to standard output: a table for readers, CSV, JSON lines or Parquet for programs."""

import io
import shutil
import sys

import polars as pl

TABLE_ROWS_MAX = 60


class Printer:
    """Prints frames as they come; a frame with other columns gets its own header."""

    def __init__(self, form: str) -> None:
        self._form = form
        self._header: list[str] = []
        self._frames: list[pl.DataFrame] = []
        self._shown = 0

    def add(self, frame: pl.DataFrame, title: str = "") -> None:
        """Print a frame, or keep it until ``close`` (Parquet)."""
        if self._form == "parquet":
            self._frames.append(frame)
        elif self._form == "csv":
            flat = frame.with_columns(_text(frame[name]) for name, dtype in frame.schema.items() if dtype.is_nested())
            sys.stdout.write(flat.write_csv(include_header=frame.columns != self._header, datetime_format="%Y-%m-%dT%H:%M:%S%.9f"))
            self._header = frame.columns
        elif self._form == "json":
            sys.stdout.write(frame.write_ndjson())
        else:
            self._table(frame, title)

    def close(self) -> None:
        """Finish the output."""
        if self._form == "parquet" and self._frames:
            # Polars hides the kind of a write error, and a closed pipe is none.
            whole = io.BytesIO()
            pl.concat(self._frames, how="diagonal").write_parquet(whole)
            sys.stdout.buffer.write(whole.getbuffer())
        sys.stdout.flush()

    def _table(self, frame: pl.DataFrame, title: str) -> None:
        if self._shown >= TABLE_ROWS_MAX and title:
            return
        # Leave out the columns of a family that have no values here.
        frame = frame[[column.name for column in frame if column.null_count() < frame.height]] if title else frame
        width = max(200, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 1000
        with pl.Config(
            tbl_width_chars=width,
            tbl_rows=TABLE_ROWS_MAX,
            tbl_cols=-1,
            fmt_str_lengths=40,
            fmt_table_cell_list_len=6,
            tbl_hide_dataframe_shape=True,
            tbl_hide_column_data_types=True,
        ):
            rows = frame.head(TABLE_ROWS_MAX - self._shown) if title else frame
            print(f"{title}\n{rows}" if title else rows)
            self._shown += rows.height


def _text(column: pl.Series) -> pl.Series:
    return pl.Series(column.name, [None if value is None else str(value) for value in column.to_list()], dtype=pl.String)
