"""`--config-name sample`: samples text from a checkpoint, without its training data.

The checkpoint is untrusted. It names the model's options, but no path that it names is opened: the
vocabulary is in the checkpoint, or in `tokenizer.json` beside it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from xftrain.checkpoint.file import read_checkpoint
from xftrain.commands import builder
from xftrain.commands.result_file import recorded, run_dir_for
from xftrain.config.compose import model_of, validate_as
from xftrain.config.composed_parts import with_own_parts
from xftrain.config.layer_pattern import layer_names
from xftrain.config.run_config import ModelConfig, SampleConfig
from xftrain.data.tokens.vocabulary import old_checkpoint_vocabulary, rebuild
from xftrain.errors import ConfigError, first_line
from xftrain.folders.reserved import ReservedFolders
from xftrain.folders.run_folder import RunFolder, refuse_training_folder
from xftrain.interfaces import Vocabulary
from xftrain.model.generate import PROMPT_TOKENS, generate, max_new_tokens, sample_text
from xftrain.model.gpt import GPT
from xftrain.train import hardware
from xftrain.train.same_run import refuse_other_model
from xftrain.utils import redaction
from xftrain.utils.device_memory import peak_memory_mib, reset_peak_memory
from xftrain.utils.files import expand_home, replace_text
from xftrain.utils.printable import one_line, printable

log = logging.getLogger(__name__)

_MAX_LAYERS = 2_000  # building takes time quadratic in the number of layers
_BLOCKS = "blocks."  # prefix of the names of layer weights
_EXAMPLE = "ckpt=outputs/<date>/<run>/checkpoints/last.ckpt"


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
        path = _path(config.ckpt)
        checkpoint = read_checkpoint(path)
        device, precision = hardware.resolve(config.accelerator, "auto")
        result["device"] = hardware.device_name(device)
        reset_peak_memory(device)
        vocabulary = _vocabulary(checkpoint, path.parent)
        model = _model(_model_config(cfg, config, checkpoint), checkpoint, vocabulary).to(device)
        prompt_BM = _prompt(checkpoint, vocabulary, config.prompt).to(device)
        dtype = hardware.compute_dtype(precision)
        tokens_BM = _sampled(config, model, prompt_BM, vocabulary.vocab_size, dtype)
        text = _decoded(vocabulary, tokens_BM[0].tolist(), prompt_BM.shape[1])
        log.info("step %d of %s:\n%s", checkpoint["global_step"], one_line(str(config.ckpt)), text)
        folder.start_new_run()
        replace_text(run_dir / "sample.txt", text + "\n")
        result["peak_memory_mib"] = round(peak_memory_mib(device), 1)
        log.info("sample: %s", run_dir / "sample.txt")
    return result


def _path(ckpt: str | None) -> Path:
    if ckpt is None:
        raise ConfigError(f"ckpt is missing: name the checkpoint to sample from, as {_EXAMPLE}.")
    path = expand_home("ckpt", ckpt)
    if not path.is_file():
        raise ConfigError(f"ckpt must be an existing checkpoint file, got {ckpt!r}, as {_EXAMPLE}.")
    return path


def _vocabulary(checkpoint: Mapping[str, Any], folder: Path) -> Vocabulary:
    """The vocabulary of the checkpoint's tokens."""
    saved = checkpoint["xftrain"]
    if "vocabulary" in saved:
        return rebuild(saved["vocabulary"], folder)
    return old_checkpoint_vocabulary(saved["config"], checkpoint["global_step"])


def _model_config(
    cfg: DictConfig, config: SampleConfig, checkpoint: Mapping[str, Any]
) -> ModelConfig:
    """The checkpoint's model, with the user's own classes that this command composes again."""
    own = config.to_dict()
    shown = redaction.without_secrets(cfg, own)["model"]
    return model_of(with_own_parts(checkpoint["xftrain"]["config"], own["model"], shown))


def _model(config: ModelConfig, checkpoint: Mapping[str, Any], vocabulary: Vocabulary) -> GPT:
    """Builds the checkpoint's model, after checking its sizes against those of the weights."""
    state = checkpoint["state_dict"]
    weights = {name.removeprefix("model."): value for name, value in state.items()}
    if config.num_layers > len(weights):
        raise ConfigError("ckpt holds fewer weights than its model has layers: give another one.")
    if config.num_layers > _MAX_LAYERS:
        raise ConfigError(
            f"ckpt holds a model of {config.num_layers:,} layers, and at most "
            f"{_MAX_LAYERS:,} can be sampled from: give another one."
        )
    num_tokens = builder.vocab_size(config, vocabulary)
    try:
        planned = _planned(config, num_tokens)
        refuse_other_model(weights, planned)
        _refuse_shared(weights, planned)
        model = builder.assemble(config, num_tokens)
        model.load_state_dict(weights)
    except (RuntimeError, OverflowError, TypeError) as error:
        raise ConfigError(
            f"ckpt describes a model that cannot be built ({first_line(error)}): give another one."
        ) from error
    return model


def _refuse_shared(weights: Mapping[str, Tensor], planned: Mapping[str, Tensor]) -> None:
    """Refuses weights that share storage, since the built model would need far more memory.

    Only a tied head may share the embedding's storage. Dtypes may differ after a 16-bit run.
    """
    num_elements: dict[int, int] = {}  # of each storage, by its address
    for weight in weights.values():
        storage = weight.untyped_storage()
        count, address = storage.nbytes() // weight.itemsize, storage.data_ptr()
        num_elements[address] = max(count, num_elements.get(address, 0))
    num_held = sum(num_elements.values())
    head, embed = (weights.get(name) for name in ("head.weight", "embed.weight"))
    is_tied = head is not None and embed is not None and head.data_ptr() == embed.data_ptr()
    needed = sum(weight.numel() for weight in planned.values())
    needed -= planned["head.weight"].numel() if is_tied else 0
    if needed > num_held:
        raise ConfigError(
            f"ckpt holds {num_held:,} numbers for a model of {needed:,}, as its weights share "
            "them: give another one."
        )


def _planned(config: ModelConfig, num_tokens: int) -> dict[str, Tensor]:
    """The model's weights by name, without memory; only one layer of each kind is built."""
    names = layer_names(config)
    kinds = tuple(dict.fromkeys(names))
    layers = replace(config.layers, pattern=kinds) if any(kinds) else config.layers
    one_layer_of_each = replace(config, num_layers=len(kinds), layers=layers)
    with torch.device("meta"):
        built = builder.assemble(one_layer_of_each, num_tokens).state_dict()
    planned = {name: weight for name, weight in built.items() if not name.startswith(_BLOCKS)}
    weights_by_kind: dict[str, dict[str, Tensor]] = {kind: {} for kind in kinds}
    for name in [name for name in built if name.startswith(_BLOCKS)]:
        index, _, rest = name.removeprefix(_BLOCKS).partition(".")
        weights_by_kind[kinds[int(index)]][rest] = built[name]
    for number in range(config.num_layers):
        weights = weights_by_kind[names[number % len(names)]].items()
        planned |= {f"{_BLOCKS}{number}.{rest}": weight for rest, weight in weights}
    return planned


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


def _prompt(checkpoint: Mapping[str, Any], vocabulary: Vocabulary, text: str | None) -> Tensor:
    """The tokens of the prompt, [1, M]; without `text`, those that the checkpoint holds."""
    if text is not None:
        return torch.tensor([vocabulary.encode(text)], dtype=torch.int64)
    tokens = checkpoint["xftrain"].get("prompt")
    is_usable = isinstance(tokens, list) and 0 < len(tokens) <= PROMPT_TOKENS
    if not is_usable or not all(
        type(token) is int and 0 <= token < vocabulary.vocab_size for token in tokens
    ):
        raise ConfigError("ckpt holds no prompt to continue: give one, as in 'prompt=\"text\"'.")
    return torch.tensor([tokens], dtype=torch.int64)
