"""Asking over HTTP: which proxy, and how long to wait."""
