"""Fixtures of the suite over all pages: the dashboard's."""

from dash_rig import empty, open_page, seed

__all__ = ["empty", "open_page", "seed"]
