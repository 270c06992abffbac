"""The store and what is made of it: the only opener of DuckDB, roll-ups, views, alerts."""
