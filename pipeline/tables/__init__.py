"""The tables that cross a process: families that collectors publish, state tables that the store keeps."""
