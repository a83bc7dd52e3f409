"""The benchmark suite: sweeps of cells, each of which becomes one row of the report."""
