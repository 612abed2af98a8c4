"""Formats: the geometry of GGUF files, block types and their bytes, the trunk file."""
