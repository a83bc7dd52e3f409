"""`--config-name sample`: samples text from a checkpoint, without its training data."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from xftrain.commands.result_file import recorded, run_dir_for
from xftrain.commands.streamed_text import StreamedText
from xftrain.commands.trained_model import TrainedModel, load_trained_model
from xftrain.config.command_configs import SampleConfig
from xftrain.config.compose import validate_as
from xftrain.data.tokens.templated_prompt import templated_prompt
from xftrain.errors import ConfigError
from xftrain.folders.reserved import ReservedFolders
from xftrain.folders.run_folder import RunFolder, refuse_training_folder
from xftrain.generation.continuation import Stops
from xftrain.generation.generate import Generated, generate_texts
from xftrain.generation.sampling import Sampling
from xftrain.interfaces import Vocabulary
from xftrain.model.gpt import GPT
from xftrain.model.prompts import MAX_PROMPT_TOKENS, max_new_tokens, sample_text
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
        ConfigError: the configuration, the checkpoint or a prompt is wrong.
    """
    run_dir = run_dir_for(run_dir)
    refuse_training_folder(run_dir, SampleConfig.output)
    folder = RunFolder(run_dir, reserved=reserved)
    with recorded(folder) as result:
        config = checked or validate_as(SampleConfig, cfg)
        _refuse_conflicts(config)
        device, precision = _device_and_precision(config)
        result["device"] = hardware.device_name(device)
        reset_peak_memory(device)
        trained = load_trained_model(cfg, config)
        prompts = _prompts(config, trained)
        model = trained.model.to(device, hardware.weights_dtype(precision))
        with hardware.autocast(precision, device):
            made = _generated(config, model, prompts, trained.vocabulary)
        text = _shown(trained.vocabulary, prompts, made)
        log.info("step %d of %s:\n%s", trained.step, one_line(str(config.ckpt)), text)
        folder.start_new_run()
        replace_text(run_dir / "sample.txt", text + "\n")
        result["peak_memory_mib"] = round(peak_memory_mib(device), 1)
        result["tokens_per_s"], result["metrics"] = made.tokens_per_s, _metrics(made)
        log.info("sample: %s", run_dir / "sample.txt")
    return result


def _device_and_precision(config: SampleConfig) -> tuple[torch.device, str]:
    device, precision = hardware.resolve(config.accelerator, config.precision)
    if config.precision == "auto" and precision == "bf16-mixed":
        precision = "bf16-true"  # weights of 16 bits are read twice as fast
    return device, precision


def _refuse_conflicts(config: SampleConfig) -> None:
    """Refuses keys that contradict each other, before the checkpoint is read."""
    if config.prompt is not None and config.prompts:
        raise ConfigError("prompt and prompts are both given: leave one of them out.")
    if config.stream and (config.num_samples > 1 or len(config.prompts) > 1):
        raise ConfigError(
            "stream=true shows one text while it is generated, got "
            f"{max(1, len(config.prompts)) * config.num_samples}: leave it false, or give one "
            "prompt and num_samples=1."
        )
    if config.template is not None and config.prompt is None and not config.prompts:
        raise ConfigError(
            f"template={config.template} is how a prompt is written, and there is none: give one, "
            "as in 'prompt=\"text\"'."
        )
    if not all(config.stop):
        raise ConfigError("stop must be texts of at least one character, got an empty one.")


def _generated(
    config: SampleConfig, model: GPT, prompts: Sequence[Sequence[int]], vocabulary: Vocabulary
) -> Generated:
    """Continues the prompts, and logs how fast."""
    longest = max(map(len, prompts))
    if model.max_positions is not None and longest > model.max_positions:
        templated = "" if config.template is None else ", those of the template included"
        raise ConfigError(
            f"prompt must have at most {model.max_positions:,} tokens, as the model of ckpt has "
            f"positions for no more, got {longest:,}{templated}: shorten it."
        )
    num_tokens = max_new_tokens(model, longest, config.num_tokens)
    if num_tokens < config.num_tokens:
        log.warning("num_tokens: the model has positions for only %d more tokens", num_tokens)
    decode = getattr(vocabulary, "decode_rest", vocabulary.decode)
    separator = getattr(vocabulary, "separator", None) if config.stop_at_end else None
    made = generate_texts(
        model,
        prompts,
        num_tokens,
        vocab_size=vocabulary.vocab_size,
        sampling=Sampling(config.temperature, config.top_k, config.top_p, config.min_p),
        stops=Stops(separator, config.stop, decode),
        num_samples=config.num_samples,
        seed=config.seed,
        on_tokens=StreamedText().show if config.stream else None,
    )
    log.info("%s", made)
    return made


def _metrics(made: Generated) -> dict[str, float]:
    speed = made.tokens_per_s
    return {
        "sample/first_token_s": made.first_token_s,
        "sample/cache_mib": made.cache_bytes / 2**20,
        **({} if speed is None else {"sample/tokens_per_s": speed}),
    }


def _shown(vocabulary: Vocabulary, prompts: Sequence[Sequence[int]], made: Generated) -> str:
    """The samples as printable text, which marks where each prompt ends."""
    copies = len(made.continuations) // len(prompts)
    texts = [
        sample_text(vocabulary.decode(list(prompts[number // copies])), one.text)
        for number, one in enumerate(made.continuations)
    ]
    return redaction.hidden(printable("\n\n".join(texts)))


def _prompts(config: SampleConfig, trained: TrainedModel) -> list[list[int]]:
    """The tokens of the prompts; without any in the configuration, of the checkpoint's prompt."""
    texts = config.prompts or (() if config.prompt is None else (config.prompt,))
    if texts and config.template is not None:
        return [templated_prompt(config.template, trained.vocabulary, text) for text in texts]
    if texts:
        return [trained.vocabulary.encode(text) for text in texts]
    return [_default_prompt(trained.saved, trained.vocabulary.vocab_size)]


def _default_prompt(saved: Mapping[str, Any], vocab_size: int) -> list[int]:
    tokens = saved.get("prompt")
    is_usable = (
        isinstance(tokens, list)
        and 0 < len(tokens) <= MAX_PROMPT_TOKENS
        and all(type(token) is int and 0 <= token < vocab_size for token in tokens)
    )
    if not is_usable:
        raise ConfigError("ckpt holds no prompt to continue: give one, as in 'prompt=\"text\"'.")
    return list(tokens or ())
