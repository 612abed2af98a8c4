"""Mechanism: the ggml device that multiplies with experts, their memory, reads and prefetches."""
