"""Decoded RoCEv2 packets to the statistics of their windows."""
