"""Models for tests and benchmarks, written as GGUF files."""
