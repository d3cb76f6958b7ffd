"""Recipes: what a YAML file may say, and reading it."""
