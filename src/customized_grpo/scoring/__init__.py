"""Scoring: all rewards of a recipe over a group, locally, concurrently and over the network."""
