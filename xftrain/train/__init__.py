"""Training with Lightning: the module and its step, precision, ranks and resuming."""
