"""The benchmarks of the benchmark, one per file: callbacks that measure after training."""
