"""Alternatives to the keys of Lightning's Trainer that xftrain does not have."""

from __future__ import annotations

# Keys of Lightning's Trainer, each with the end of the error message that refuses it.
USE_INSTEAD = {
    "barebones": "it switches off what a run records; use callbacks=none logger=none",
    "benchmark": "shapes do not change during a run; leave it out",
    "callbacks": "callbacks are a group of their own; use callbacks=<option> or +callbacks.<name>=",
    "check_val_every_n_epoch": "a run has no epochs; use trainer.val_check_interval=<batches>",
    "default_root_dir": "Hydra names the folder of a run; use hydra.run.dir=<folder>",
    "deterministic": "it is a root key; use deterministic=true",
    "enable_autolog_hparams": "every logger receives the configuration; leave it out",
    "enable_checkpointing": "a callback saves checkpoints; callbacks.checkpoint=null saves none",
    "enable_model_summary": "a callback shows the layers; use "
    "+callbacks.summary={_target_: lightning.pytorch.callbacks.ModelSummary}",
    "enable_progress_bar": "a callback shows the progress; use callbacks.progress.style=none",
    "fast_dev_run": "it would replace the loggers; use debug=fdr",
    "gradient_clip_algorithm": "gradients are clipped by their norm; use trainer.gradient_clip_val",
    "inference_mode": "validation shares the training step's compiled code; leave it out",
    "limit_predict_batches": "a run predicts nothing; use --config-name sample for text",
    "limit_test_batches": "a run has no test batches; use trainer.limit_val_batches",
    "limit_train_batches": "a run has no epochs; use max_steps, or trainer.overfit_batches",
    "logger": "loggers are a group of their own; use logger=<option>",
    "max_epochs": "a run has no epochs; use max_steps=<optimizer steps>",
    "max_steps": "it is a root key; use max_steps=<optimizer steps>",
    "min_epochs": "a run has no epochs; use max_steps=<optimizer steps>",
    "min_steps": "a run that stops early is stopped by a callback; leave out that callback, as in "
    "callbacks.solved=null",
    "num_nodes": "a run takes place on one machine; use trainer=ddp trainer.devices=<GPUs>",
    "plugins": "the precision and the devices decide them; use trainer.precision, trainer.devices",
    "reload_dataloaders_every_n_epochs": "batches are a function of the step; leave it out",
    "strategy": "the number of devices decides it; use trainer=ddp trainer.devices=<GPUs>",
    "sync_batchnorm": "no layer normalizes over the batch; leave it out",
    "use_distributed_sampler": "each rank makes batches of its own; leave it out",
}


# Root keys by the names that other programs use, each with the end of the same message.
_OTHER_NAMES = {
    "learning_rate": "use optim.lr=<value>",
    "epochs": "a run has no epochs; use max_steps=<optimizer steps>",
}
_OTHER_NAMES |= dict.fromkeys(("num_epochs", "max_epochs"), _OTHER_NAMES["epochs"])


def use_instead(key: str) -> str | None:
    """The error message that refuses a key of Lightning or of other programs; None for others."""
    if (reason := _OTHER_NAMES.get(key)) is not None:
        return f"{key} is not a key of the configuration: {reason}."
    group, _, name = key.partition(".")
    reason = USE_INSTEAD.get(name) if group == "trainer" else None
    return reason and f"{key} is a key of Lightning's Trainer that xftrain does not have: {reason}."
