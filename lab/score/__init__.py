"""Scores of the pipeline's findings against the truth of the virtual fabric."""
