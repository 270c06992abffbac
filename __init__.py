"""Weft: telemetry and analytics for the back-end fabric of GPU clusters."""

__version__ = "0.1.0"
