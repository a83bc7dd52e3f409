"""The benchmark suite: each benchmark measures cells, which become rows of the report."""
