"""Formats: GGUF geometry, block types and their bytes, the trunk file."""
