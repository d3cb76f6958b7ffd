"""Rewards: one per file, float32, higher is better, NaN means unscorable."""
