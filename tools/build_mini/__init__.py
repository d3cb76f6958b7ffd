"""Builds every model of the miniature world from nothing: `python -m build_mini`."""
