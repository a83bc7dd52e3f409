"""`--config-name sample`: samples text from a checkpoint, without its training data."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from xftrain.commands.result_file import recorded, run_dir_for
from xftrain.commands.trained_model import load_trained_model
from xftrain.config.compose import validate_as
from xftrain.config.run_config import SampleConfig
from xftrain.errors import ConfigError
from xftrain.folders.reserved import ReservedFolders
from xftrain.folders.run_folder import RunFolder, refuse_training_folder
from xftrain.interfaces import Vocabulary
from xftrain.model.generate import PROMPT_TOKENS, generate, max_new_tokens, sample_text
from xftrain.model.gpt import GPT
from xftrain.train import hardware
from xftrain.utils import redaction
from xftrain.utils.device_memory import peak_memory_mib, reset_peak_memory
from xftrain.utils.files import replace_text
from xftrain.utils.printable import one_line, printable

log = logging.getLogger(__name__)


def sample(
    cfg: DictConfig,
    run_dir: Path | None = None,
    checked: SampleConfig | None = None,
    reserved: ReservedFolders | None = None,
) -> dict[str, Any]:
    """Writes `sample.txt` into the run folder, and returns the content of `result.json`.

    Args:
        cfg: what `xftrain.compose(config_name="sample")` returns.
        run_dir: the run folder; None makes one under `outputs/`.
        checked: the checked configuration, if `compose.validate` has been called.
        reserved: the folders that the command line has locked.

    Raises:
        ConfigError: the configuration, the checkpoint or the prompt is wrong.
    """
    run_dir = run_dir_for(run_dir)
    refuse_training_folder(run_dir, "a sample")
    folder = RunFolder(run_dir, reserved=reserved)
    with recorded(folder) as result:
        config = checked or validate_as(SampleConfig, cfg)
        device, precision = hardware.resolve(config.accelerator, "auto")
        result["device"] = hardware.device_name(device)
        reset_peak_memory(device)
        trained = load_trained_model(cfg, config)
        model, vocabulary = trained.model.to(device), trained.vocabulary
        prompt_BM = _prompt(trained.saved, vocabulary, config.prompt).to(device)
        dtype = hardware.compute_dtype(precision)
        tokens_BM = _sampled(config, model, prompt_BM, vocabulary.vocab_size, dtype)
        text = _decoded(vocabulary, tokens_BM[0].tolist(), prompt_BM.shape[1])
        log.info("step %d of %s:\n%s", trained.step, one_line(str(config.ckpt)), text)
        folder.start_new_run()
        replace_text(run_dir / "sample.txt", text + "\n")
        result["peak_memory_mib"] = round(peak_memory_mib(device), 1)
        log.info("sample: %s", run_dir / "sample.txt")
    return result


def _sampled(
    config: SampleConfig, model: GPT, prompt_BM: Tensor, vocab_size: int, dtype: torch.dtype
) -> Tensor:
    """The prompt and the tokens that the model adds to it, [1, M + new tokens]."""
    model.check_length(prompt_BM.shape[1])
    num_tokens = max_new_tokens(model, prompt_BM, config.num_tokens)
    if num_tokens < config.num_tokens:
        log.warning("num_tokens: the model has positions for only %d more tokens", num_tokens)
    with torch.autocast(prompt_BM.device.type, dtype, enabled=dtype != torch.float32):
        return generate(
            model,
            prompt_BM,
            num_tokens,
            vocab_size=vocab_size,
            temperature=config.temperature,
            top_k=config.top_k,
            seed=config.seed,
        )


def _decoded(vocabulary: Vocabulary, tokens: list[int], prompt_tokens: int) -> str:
    """The sample as printable text, which marks where the prompt ends."""
    prompt = vocabulary.decode(tokens[:prompt_tokens])
    decode_rest = getattr(vocabulary, "decode_rest", vocabulary.decode)
    return redaction.hidden(printable(sample_text(prompt, decode_rest(tokens[prompt_tokens:]))))


def _prompt(saved: Mapping[str, Any], vocabulary: Vocabulary, text: str | None) -> Tensor:
    """The tokens of the prompt, [1, M]; without `text`, those that the checkpoint holds."""
    if text is not None:
        return torch.tensor([vocabulary.encode(text)], dtype=torch.int64)
    tokens = saved.get("prompt")
    is_usable = (
        isinstance(tokens, list)
        and 0 < len(tokens) <= PROMPT_TOKENS
        and all(type(token) is int and 0 <= token < vocabulary.vocab_size for token in tokens)
    )
    if not is_usable:
        raise ConfigError("ckpt holds no prompt to continue: give one, as in 'prompt=\"text\"'.")
    return torch.tensor([tokens], dtype=torch.int64)
