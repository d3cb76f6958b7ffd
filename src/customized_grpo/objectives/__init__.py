"""Objectives: from log-probabilities and advantages to a loss, one per file."""
