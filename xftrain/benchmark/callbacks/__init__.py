"""Benchmarks, one per file: callbacks that measure after training."""
