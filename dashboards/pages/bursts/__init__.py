"""The Bursts page."""
