"""Fixtures of the dashboard's tests."""

from dash_rig import empty, free_port, one_row, open_page, pictured, seed, serve, slow_fabric

__all__ = ["empty", "free_port", "one_row", "open_page", "pictured", "seed", "serve", "slow_fabric"]
