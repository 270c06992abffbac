"""This machine's interfaces: bytes per millisecond as burst samples, all counters once a second."""
