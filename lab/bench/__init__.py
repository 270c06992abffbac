"""The benchmarks: rates and memory, each compared with a limit or a peer in the same run."""
