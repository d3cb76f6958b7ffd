"""Held-out generation, metrics, statistics and summary tables."""
