"""Data preparation: import, check, split, mask and download data sets. Only commands import it."""
