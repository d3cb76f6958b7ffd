"""The command line, one file per command; app is its root."""
