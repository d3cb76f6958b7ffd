"""What a run costs before it begins: time from measured tables, downloads, disk. No weights are loaded."""
