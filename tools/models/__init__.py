"""Random and tiny models for tests and benchmarks, and writing them as GGUF files."""
