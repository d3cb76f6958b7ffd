"""Memory estimate of a recipe, from shapes alone."""
