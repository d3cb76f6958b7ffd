"""Builder of every model of the miniature world, from scratch: `python -m build_mini`."""
