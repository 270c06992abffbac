"""What exists: devices, ports, links and their places, from the files in which people keep them."""
