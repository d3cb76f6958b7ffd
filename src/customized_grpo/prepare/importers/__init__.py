"""Importers from common data set layouts to the manifest: one file per family of sources, one writer for all."""
