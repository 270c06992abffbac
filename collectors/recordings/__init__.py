"""Recordings of any family: what ``weft record`` wrote, CSV and Parquet tables, and folders of recordings."""
