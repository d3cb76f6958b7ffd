"""Memory estimate of a recipe, computed from shapes alone."""
