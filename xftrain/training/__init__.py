"""The Lightning side: module, trainer, optimizers, callbacks, checkpoints."""
