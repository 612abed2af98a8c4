"""Benchmarks: each prints its numbers beside their bounds."""
