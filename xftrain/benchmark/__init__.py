"""Which attention to use on this machine, measured: sweeps of cells, each one row of the report."""
