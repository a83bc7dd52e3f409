"""Adapter by which lm-evaluation-harness drives a trained model; needs the extra `eval`.

from lm_eval import simple_evaluate
from xftrain.commands.lm_eval import XftrainLM

simple_evaluate(XftrainLM("outputs/text/checkpoints/last.ckpt"), tasks=["arc_easy"])
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from lm_eval.api.model import LM

from xftrain.commands.trained_model import load_trained_model
from xftrain.config.command_configs import SampleConfig
from xftrain.config.compose import compose, validate_as
from xftrain.errors import ConfigError
from xftrain.evaluation.likelihood import Likelihood, likelihoods, split_tokens
from xftrain.generation.continuation import Stops
from xftrain.generation.generate import generate_texts
from xftrain.generation.sampling import Sampling
from xftrain.train import hardware

_NEW_TOKENS = 256  # of a generated text, if a task does not say how many; at most half of a context
_NEW_TOKENS_KEYS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_AT_ONCE = 32  # texts that are generated at once


class XftrainLM(LM):  # type: ignore[misc]  # the extra may be missing
    """A checkpoint as a model of lm-evaluation-harness.

    Args:
        ckpt: path of the checkpoint.
        accelerator: `auto`, `cpu` or `gpu`.
        max_tokens: maximum number of tokens that are computed at once.

    Raises:
        ConfigError: there is no such checkpoint, or its vocabulary is not one of text.
    """

    def __init__(self, ckpt: str, accelerator: str = "auto", max_tokens: int | str = 16384) -> None:
        super().__init__()
        cfg = compose(f"accelerator={accelerator}", config_name="sample")
        cfg.ckpt = str(ckpt)
        config = validate_as(SampleConfig, cfg)
        device, precision = hardware.resolve(config.accelerator, "auto")
        self._precision_name = precision
        trained = load_trained_model(cfg, config)
        self._vocabulary: Any = trained.vocabulary
        if not hasattr(self._vocabulary, "separator"):
            raise ConfigError(f"ckpt must be of a model of text, got one of {trained.path}.")
        self._model = trained.model.to(device).eval()
        self._positions = trained.trained_positions
        self._max_tokens = int(max_tokens)  # lm_eval passes arguments as text
        self._device = device

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation, and whether it would be generated greedily."""
        pairs = [split_tokens(self._vocabulary, *request.args) for request in requests]
        with self._precision():
            found = self._likelihoods(pairs)
        return [(one.log_likelihood, one.is_greedy) for one in found]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """The log-likelihood of each text, every token of it with as much context as possible."""
        pairs, counts = [], []
        for request in requests:
            windows = self._windows(request.args[0])
            pairs += windows
            counts.append(len(windows))
        with self._precision():
            found = [one.log_likelihood for one in self._likelihoods(pairs)]
        totals = []
        for count in counts:
            totals.append(sum(found[:count]))
            found = found[count:]
        return totals

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """The continuation of each context, up to a stop string of its task."""
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(index)
        texts = [""] * len(requests)
        for key, indices in groups.items():
            for begin in range(0, len(indices), _AT_ONCE):
                part = indices[begin : begin + _AT_ONCE]
                contexts = [requests[index].args[0] for index in part]
                for index, text in zip(
                    part, self._generated(contexts, json.loads(key)), strict=True
                ):
                    texts[index] = text
        return texts

    def _likelihoods(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[Likelihood]:
        return likelihoods(self._model, pairs, self._max_tokens, self._positions)

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        """A text cut into continuations, each with the context that fits before it."""
        whole = [self._vocabulary.separator, *self._vocabulary.encode(text)]
        limit = self._positions or len(whole)
        windows = []
        for begin in range(1, len(whole), limit):
            continuation = whole[begin : begin + limit]
            first = max(0, begin - (limit - len(continuation) + 1))
            windows.append((whole[first:begin], continuation))
        return windows

    def _generated(self, contexts: Sequence[str], options: Mapping[str, Any]) -> list[str]:
        """Continues texts with the options of a task."""
        limit = self._model.max_positions
        default = _NEW_TOKENS if limit is None else min(_NEW_TOKENS, max(1, limit // 2))
        num_tokens = next((int(options[k]) for k in _NEW_TOKENS_KEYS if options.get(k)), default)
        if limit is not None and num_tokens > limit:
            raise ConfigError(f"max_gen_toks must be at most {limit} for ckpt, got {num_tokens}.")
        separator = self._vocabulary.separator
        prompts = [[separator, *(self._vocabulary.encode(c) if c else [])] for c in contexts]
        if limit is not None:
            prompts = [prompt[-(limit - num_tokens + 1) :] for prompt in prompts]
        until = options.get("until") or ()
        temperature = float(options.get("temperature", 0.0))
        sampling = Sampling(
            temperature if options.get("do_sample", temperature > 0) else 0.0,
            max(0, int(options.get("top_k") or 0)) or None,  # 0 and -1 are no limit
            options.get("top_p"),
        )
        decode: Callable[[list[int]], str] = getattr(
            self._vocabulary, "decode_rest", self._vocabulary.decode
        )
        strings = (until,) if isinstance(until, str) else until
        stops = Stops(separator, tuple(string for string in strings if string), decode)
        size = self._vocabulary.vocab_size
        with self._precision():
            made = generate_texts(
                self._model, prompts, num_tokens, vocab_size=size, sampling=sampling, stops=stops
            )
        return [one.text for one in made.continuations]

    def _precision(self) -> AbstractContextManager[Any]:
        return hardware.autocast(self._precision_name, self._device)
