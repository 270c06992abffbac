"""What the pipeline finds, scored against what really happened in the virtual fabric."""
