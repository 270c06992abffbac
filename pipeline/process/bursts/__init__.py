"""Burst samples to the statistics of their windows."""
