"""Training with Lightning: module, trainer, optimizers, callbacks, checkpoints."""
