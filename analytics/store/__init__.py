"""The store: the only opener of DuckDB; writing, publishing, roll-ups, retention, and reading."""
