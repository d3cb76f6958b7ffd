"""Recipes: their sections, YAML files and validation."""
