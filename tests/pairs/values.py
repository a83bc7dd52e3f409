"""What the schema cannot tell: values of open fields that keep a run tiny and tell two cases apart.

Everything else comes from the types. An entry for a field that is gone fails a test.
"""

from __future__ import annotations

from typing import Any

# Groups that are no part of one run: Hydra's own, and how a sweep draws its jobs.
NOT_A_FACTOR = ("hydra", "hparams_search")

# Places that a run gets from whoever runs the row.
CORPUS, CACHE = "{corpus}", "{cache}"
CONVERSATIONS = f"{CORPUS}.jsonl"

VALUES: dict[str, tuple[Any, ...]] = {
    # Tiny, of odd and of even sizes: 33 is no multiple of a kernel's tile, and 48 / 4 = 12 no
    # multiple of 8 for the width of a head.
    "seq": (64, 33),
    "batch_tokens": (200, 70),
    "max_steps": (2, 3),
    "model.dim": (32, 48),
    "model.num_layers": (1, 2),
    "model.num_heads": (2, 4),
    "model.vocab_size": (None, 384),
    "model.dropout": (0.0, 0.2),
    "model.init_std": (0.1, 0.02),
    "model.logit_softcap": (None, 0.5),  # about as large as the logits of such a model
    "model.score_softcap": (None, 0.5),
    "model.activation_budget": (1.0, 0.5),
    "model.pos[learned].max_positions": ("${seq}", 80),
    "model.pos[rope].fraction": (1.0, 0.5),
    "model.heads[gqa].num_kv_heads": (None, 2),
    # windows that hide something of a row of 33, and one that hides nothing
    "model.bias[window].window": (5, 40, 128),
    "model.bias[alibi].window": (None, 7),
    **{
        f"model.ffn[{option}].hidden_dim": (None, 40)
        for option in ("gelu", "geglu", "relu2", "swiglu")
    },
    # less than a batch, so that the last chunk is a short one
    "loss[chunked].chunk_tokens": (4096, 24),
    "loss[fused].chunk_tokens": (16384, 24),
    **{
        f"loss[{option}].{field}": (0.0, value)
        for option in ("auto", "full", "chunked", "fused", "liger")
        for field, value in (("z_loss", 0.1), ("label_smoothing", 0.2))
    },
    "data[chat].path": (CONVERSATIONS,),
    "data[chat].tokenizer": ("bytes", "bpe"),
    "data[chat].cache_dir": (None, CACHE),
    "data[chat].vocab_size": (None, 300),
    "data[chat].batch_size": (None, 2),
    "data[chat].val_fraction": (0.1, 0.3),
    "data[counting].vocab_size": (64, 50),
    "data[counting].batch_size": (None, 2),
    "data[counting].stop_at_accuracy": (None, 0.999),  # at 0 a run would end after a step
    "data[counting_packed].vocab_size": (64, 50),
    "data[counting_packed].batch_size": (None, 2),
    "data[counting_packed].stop_at_accuracy": (None, 0.999),
    "data[mixture].sources": (
        {"a": {"path": CORPUS, "weight": 2}, "b": {"path": CORPUS, "weight": 1}},
    ),
    "data[mixture].tokenizer": ("bytes", "bpe"),
    "data[mixture].cache_dir": (None, CACHE),
    "data[mixture].vocab_size": (None, 300),
    "data[mixture].batch_size": (None, 2),
    "data[mixture].val_fraction": (0.1, 0.3),
    "data[text].path": (CORPUS,),
    "data[text].cache_dir": (None, CACHE),
    "data[text].vocab_size": (None, 300),
    "data[text].batch_size": (None, 2),
    "data[text].val_fraction": (0.1, 0.3),
    "optim[adafactor].beta2_decay": (-0.8, -0.5),
    "optim[adamw].param_groups": ([], [{"match": "*.ffn.*", "lr": 0.01, "optimizer": "adafactor"}]),
    "optim[muon].num_ns_steps": (5, 2),
    "optim[muon].others": ("adamw", "adafactor"),
    "ckpt": (None, "auto"),
    "ckpt_allow": ([], ["seed"]),
    "tags": ([], ["pairs"]),
    "trainer.devices": (1, 2),
    "trainer.accumulate_grad_batches": (1, 3),
    "trainer.gradient_clip_val": (1.0, None, 0.01),
    "trainer.log_every_n_steps": (1, 2),
    "trainer.val_check_interval": (20, 1),
    "trainer.limit_val_batches": (None, 1),  # without validation there is nothing to compare
    "trainer.overfit_batches": (0, 2),
    "trainer.num_sanity_val_steps": (0, 1),
    "callbacks.attention_pattern.num_positions": (16, 1),  # the picture of 1024 takes a second
    "callbacks.sample.num_tokens": (3, 70),  # more than a row holds
    "callbacks.sample.temperature": (0.8, 0),
    "callbacks.sample.top_k": (40, 1, None),
    "callbacks.progress.every_n_steps": (None, 1),
    "callbacks.average.validate": (False,),  # the reference validates the trained weights
    "init_weights": ("trained",),  # the other needs a checkpoint
    "callbacks.checkpoint.every_n_steps": (None, 1),
}
