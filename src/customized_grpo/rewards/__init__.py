"""Rewards: one a file, float32, higher is better, NaN means unscorable."""
