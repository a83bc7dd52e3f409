"""The benchmark suite: benchmarks of cells, each of which becomes one row of the report."""
