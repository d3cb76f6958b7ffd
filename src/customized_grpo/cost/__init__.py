"""Cost of a run before it begins: time from measured tables, downloads, disk. No weights are loaded."""
