"""Cumulative counters to their deltas in each window."""
