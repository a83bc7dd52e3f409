"""Logs a sample of the model's output at the end of training."""

import logging

from lightning.pytorch import Callback, LightningModule, Trainer

from xftrain.config.fields import NonNegativeFloat, PositiveInt
from xftrain.generation.generate import generate
from xftrain.model.prompts import default_prompt, max_new_tokens, sample_text
from xftrain.train.log_text import log_text
from xftrain.train.module import TrainingModule, training_module
from xftrain.utils.optional import optional_step
from xftrain.utils.printable import printable

log = logging.getLogger(__name__)


class Sample(Callback):
    """Generates a sample, and writes it to the log and to TensorBoard.

    Args:
        num_tokens: how many tokens to add to the prompt; fewer if the model has fewer positions
            left.
        temperature: 0 selects the most likely token.
        top_k: sample from the k most likely tokens; None samples from all.
    """

    modifies_weights = False

    def __init__(
        self,
        *,
        num_tokens: PositiveInt = 64,
        temperature: NonNegativeFloat = 0.8,
        top_k: PositiveInt | None = 40,
    ) -> None:
        self.num_tokens, self.temperature, self.top_k = num_tokens, temperature, top_k

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the sample."""
        if trainer.is_global_zero:
            with optional_step("callbacks.sample"):
                self._write(trainer, training_module(pl_module))

    def _write(self, trainer: Trainer, module: TrainingModule) -> None:
        prompt_BM = default_prompt(module.data).to(module.device)
        with trainer.precision_plugin.forward_context():
            tokens_BM = generate(
                module.model,
                prompt_BM,
                max_new_tokens(module.model, prompt_BM.shape[1], self.num_tokens),
                vocab_size=module.data.vocab_size,
                temperature=self.temperature,
                top_k=self.top_k,
            )
        prompt = module.data.decode(prompt_BM[0].tolist())
        vocabulary = getattr(module.data, "vocabulary", None)
        decode_rest = getattr(vocabulary, "decode_rest", module.data.decode)
        added = decode_rest(tokens_BM[0, prompt_BM.shape[1] :].tolist())
        text = sample_text(prompt, added)
        log.info("sample of the model:\n%s", printable(text))
        log_text(trainer.loggers, "sample", text, trainer.global_step)
