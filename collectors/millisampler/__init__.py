"""Millisampler recordings: byte counts of hosts at 1 ms."""
