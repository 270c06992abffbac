"""Counters that are read fast: from cumulative values to samples on a grid and counter rows."""
