"""The Fabric page."""
