"""The inventory: devices, ports, links and their places, from configuration and topology files."""
