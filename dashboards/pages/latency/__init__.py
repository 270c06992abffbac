"""The Latency page."""
