"""Cumulative counters to what they moved in each window."""
