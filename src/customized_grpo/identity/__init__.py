"""Identity by content: hashes of files, and of what the options of a recipe name."""
