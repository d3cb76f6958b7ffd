"""From the layouts that people have to the neutral manifest: one file a family of sources, one writer for all."""
