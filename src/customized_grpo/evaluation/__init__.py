"""Held-out generation, metrics, bootstrap statistics and summary tables."""
