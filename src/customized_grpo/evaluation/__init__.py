"""Held-out generation, metrics, bootstrap statistics, and the report that is read from a run's folder."""
