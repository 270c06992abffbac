"""The Congestion page."""
