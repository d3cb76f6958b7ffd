"""A run as a folder for the hub: the adapter in the stock format, its model card, and the upload."""
