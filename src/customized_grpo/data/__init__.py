"""Data sets: the manifest, the one image loader, and the order in which examples are visited."""
