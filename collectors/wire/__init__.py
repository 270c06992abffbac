"""Bytes to columns: kernels that read many packets in one call, and never beyond their input."""
