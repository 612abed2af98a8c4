"""Programs around the runtime: models for tests and speed, the built-in model, benchmarks."""
