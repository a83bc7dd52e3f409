"""Calls each of the user's own parts of a model once before training, and checks what it returns.

torch broadcasts a shape such as [B, M, 1] without an error, so that a model with a wrong part would
train. A part is built anew and called on the device of the run, on random tensors of the sizes of
the first batch: a part that compiles itself, or chooses a kernel by sizes, does it as in a step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from xftrain.config import registry
from xftrain.config.layer_pattern import layer_names, layer_options
from xftrain.config.option_config import OptionConfig
from xftrain.config.run_config import ModelConfig, RunConfig
from xftrain.errors import ConfigError, RunError, first_line
from xftrain.interfaces import AttnCall, AttnCase, Batch, LossSums, loss_sums
from xftrain.interfaces.batch_checks import describe_value
from xftrain.utils.printable import one_line

log = logging.getLogger(__name__)


def check_own_parts(
    cfg: RunConfig, vocab_size: int, batch: Batch, cases: list[AttnCase], is_mixed: bool
) -> None:
    """Checks what the user's own norm, positions, heads, feed-forwards, backend and loss return.

    A part that cannot be called before training is not checked; the log says so.

    Args:
        cfg: the checked configuration.
        vocab_size: V.
        batch: the first batch.
        cases: the attention calls of this batch.
        is_mixed: whether weights are float32 and autocast copies them.

    Raises:
        ConfigError: a part returns a wrong value; the message names the class, the method, what it
            must return and what it returned.
    """
    own, device = list(_own_checks(cfg, cases)), cases[0].call.device
    if not own:
        return
    trial = _Trial(cfg.model, batch, vocab_size, device, cases[0].call.dtype, is_mixed)
    # only of this device: reading the random state of every GPU would allocate memory on each
    used = [device] if device.type == "cuda" else []
    with isolate_rng(include_cuda=False), torch.random.fork_rng(used):
        with trial.precision(), torch.no_grad():
            for option, check, call in own:
                with _left_to_training(option):
                    check(trial, option, call)


@dataclass(frozen=True)
class _Trial:
    """Sizes, precision and random inputs with which the user's own parts are called."""

    model: ModelConfig
    batch: Batch
    vocab_size: int
    device: torch.device
    dtype: torch.dtype  # of matmuls and attention
    is_mixed: bool

    @property
    def weight_dtype(self) -> torch.dtype:
        return torch.float32 if self.is_mixed else self.dtype

    @property
    def sizes(self) -> tuple[int, int, int]:
        """B, M and D."""
        return (*self.batch.shape_BM, self.model.dim)

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Within this context, parts run in the precision of a step."""
        default = torch.get_default_dtype()
        casts = torch.autocast(self.device.type, self.dtype) if self.is_mixed else nullcontext()
        torch.set_default_dtype(self.weight_dtype)  # as Lightning does for bf16-true
        try:
            with casts:
                yield
        finally:
            torch.set_default_dtype(default)

    def build(self, option: OptionConfig, *positional: Any) -> Any:
        with torch.device(self.device):
            part = registry.build(option, *positional)
        if isinstance(part, nn.Module):
            narrow = None if self.weight_dtype == torch.float32 else self.weight_dtype
            part = part.to(self.device, narrow)
        return part

    def random(self, dtype: torch.dtype, *sizes: int) -> Tensor:
        return torch.randn(sizes, device=self.device).to(dtype)

    def stream(self) -> Tensor:
        """A random residual stream, [B, M, D]."""
        is_narrow = self.dtype == torch.bfloat16 and self.model.residual_dtype == "auto"
        return self.random(self.dtype if is_narrow else self.weight_dtype, *self.sizes)

    def expect(self, label: str, result: Any, letters: str, *sizes: int) -> None:
        """Refuses anything but a tensor of these sizes, in a dtype of the run, on its device."""
        dtypes = dict.fromkeys((self.dtype, self.weight_dtype))
        if (
            isinstance(result, Tensor)
            and tuple(result.shape) == sizes
            and result.dtype in dtypes
            and result.device.type == self.device.type
        ):
            return
        names = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        elsewhere = isinstance(result, Tensor) and result.device.type != self.device.type
        raise ConfigError(
            f"{label} must return a {names} tensor of shape [{letters}] = {list(sizes)}, got "
            f"{describe_value(result)}{f' on {result.device}' if elsewhere else ''}: correct "
            "the class as docs/extending.md describes."
        )


_Check = Callable[[_Trial, OptionConfig, AttnCall], None]


def _own_checks(
    cfg: RunConfig, cases: list[AttnCase]
) -> Iterator[tuple[OptionConfig, _Check, AttnCall]]:
    """The user's own parts with their checks, each part of the layers once."""
    model, names, options = cfg.model, layer_names(cfg.model), layer_options(cfg.model)
    found: list[tuple[OptionConfig, _Check, AttnCall]] = [
        (model.norm, _check_norm, cases[0].call),
        (model.pos, _check_embed, cases[0].call),
        *((model.attn, _check_backend, call) for call, _ in cases),
        (cfg.loss, _check_loss, cases[0].call),
    ]
    checks: dict[str, _Check] = {
        "pos": _check_apply_to,
        "heads": _check_heads,
        "ffn": _check_ffn,
    }
    for call, layers in cases:
        for name in dict.fromkeys(names[layer % len(names)] for layer in layers):
            for part, check in checks.items():
                item = (getattr(options[name], part), check, call)
                if item not in found:
                    found.append(item)
    return ((option, check, call) for option, check, call in found if option.name is None)


@contextmanager
def _left_to_training(option: OptionConfig) -> Iterator[None]:
    """Logs an error that the class itself raises; if it recurs, it ends training."""
    try:
        yield
    except (ConfigError, RunError):
        raise
    except Exception as error:
        log.info(
            "%s: %s cannot be called before training (%s), so what it returns is not checked",
            option.key,
            option.label,
            one_line(first_line(error)),
        )


def _method_label(option: OptionConfig, part: Any, method: str) -> str:
    return f"{option.key}: {type(part).__qualname__}.{method}"


def _check_norm(trial: _Trial, option: OptionConfig, call: AttnCall) -> None:
    norm = trial.build(option, trial.model.dim, trial.model.linear_bias)
    trial.expect(
        _method_label(option, norm, "forward"), norm(trial.stream()), "B, M, D", *trial.sizes
    )


def _check_ffn(trial: _Trial, option: OptionConfig, call: AttnCall) -> None:
    ffn = trial.build(option, trial.model.dim, trial.model.linear_bias)
    label, made = _method_label(option, ffn, "forward"), ffn(trial.stream())
    if isinstance(made, tuple):
        if len(made) != 2 or not _is_scalar(made[1]) or not made[1].is_floating_point():
            raise ConfigError(
                f"{label} must return a tensor, or a pair of it and its auxiliary loss, a "
                f"floating-point scalar; got {describe_value(made)}."
            )
        made = made[0]
    trial.expect(label, made, "B, M, D", *trial.sizes)


def _check_embed(trial: _Trial, option: OptionConfig, call: AttnCall) -> None:
    pos = trial.build(option, trial.model.dim, call.shape.K)
    x_BMD = trial.random(trial.weight_dtype, *trial.sizes)
    made = pos.embed(x_BMD, trial.batch.positions_1M.to(trial.device))
    trial.expect(_method_label(option, pos, "embed"), made, "B, M, D", *trial.sizes)


def _check_apply_to(trial: _Trial, option: OptionConfig, call: AttnCall) -> None:
    pos, shape = trial.build(option, trial.model.dim, call.shape.K), call.shape
    prepared = pos.prepare(trial.batch.positions_1M.to(trial.device))
    q_BMHK, k_BMGK, _ = _random_qkv(trial, call)
    label, made = _method_label(option, pos, "apply_to"), pos.apply_to(q_BMHK, k_BMGK, prepared)
    q, k = _unpacked(label, made, ("q_BMHK", "k_BMGK"))
    trial.expect(f"{label}, of q,", q, "B, M, H, K", shape.B, shape.M, shape.H, shape.K)
    trial.expect(f"{label}, of k,", k, "B, M, G, K", shape.B, shape.M, shape.G, shape.K)


def _check_heads(trial: _Trial, option: OptionConfig, call: AttnCall) -> None:
    shape, model = call.shape, trial.model
    heads = trial.build(option, model.dim, model.num_heads, model.linear_bias)
    if shape.H % shape.G:
        raise ConfigError(
            f"{_method_label(option, heads, 'num_kv_heads')} must divide the {shape.H} query "
            f"heads, got {shape.G}."
        )
    label, made = _method_label(option, heads, "forward"), heads(trial.stream())
    tensors = _unpacked(label, made, ("q_BMHK", "k_BMGK", "v_BMGK"))
    for name, letter, num, one in zip(
        "qkv", "HGG", (shape.H, shape.G, shape.G), tensors, strict=True
    ):
        name_label = f"{label}, of {name},"
        trial.expect(name_label, one, f"B, M, {letter}, K", shape.B, shape.M, num, shape.K)


def _check_backend(trial: _Trial, option: OptionConfig, call: AttnCall) -> None:
    backend, shape = trial.build(option), call.shape
    if backend.needs_compilation:  # uncompiled, it may need far more memory than a step has
        return
    made = backend(*_random_qkv(trial, call), backend.prepare_handle(call))
    label = _method_label(option, backend, "__call__")
    trial.expect(label, made, "B, M, H, K", shape.B, shape.M, shape.H, shape.K)


def _check_loss(trial: _Trial, option: OptionConfig, call: AttnCall) -> None:
    loss = trial.build(option)
    x_ND = trial.stream().flatten(0, 1).requires_grad_()
    weight_VD = trial.random(trial.weight_dtype, trial.vocab_size, trial.model.dim)
    labels_N = trial.batch.labels_BM.flatten().to(trial.device)
    for with_accuracy in (False, True):
        with torch.enable_grad():
            sums = loss_sums(
                *(loss, x_ND, weight_VD.requires_grad_(), labels_N, trial.model.logit_softcap),
                with_accuracy=with_accuracy,
            )
        _check_sums(
            _method_label(option, loss, "__call__"), sums, trial.device, with_accuracy=with_accuracy
        )


def _check_sums(label: str, sums: Any, device: torch.device, *, with_accuracy: bool) -> None:
    if not isinstance(sums, LossSums):
        raise ConfigError(
            f"{label} must return an xftrain.interfaces.LossSums, got {describe_value(sums)}."
        )
    counts: dict[str, Any] = {"num_labels": sums.num_labels}
    if with_accuracy:
        counts["num_correct"] = sums.num_correct
    for name, value in {"loss": sums.loss, **counts}.items():
        is_right = _is_scalar(value) and value.device.type == device.type
        if is_right and name == "loss":
            is_right = value.is_floating_point() and value.requires_grad
        elif is_right:
            is_right = not value.is_floating_point() and not value.is_complex()
        if not is_right:
            rule = "a scalar tensor of integers"
            if name == "loss":
                rule = "a floating-point scalar with a gradient for x_ND, a sum over the labels"
            grad = isinstance(value, Tensor) and name == "loss" and not value.requires_grad
            raise ConfigError(
                f"{label} must return LossSums whose {name} is {rule}, on {device.type}, got "
                f"{describe_value(value)}{' without a gradient' if grad else ''}: correct the "
                "class as docs/extending.md describes."
            )


def _random_qkv(trial: _Trial, call: AttnCall) -> tuple[Tensor, Tensor, Tensor]:
    B, M, K = call.shape.B, call.shape.M, call.shape.K
    q, k, v = (trial.random(trial.dtype, B, M, n, K) for n in (call.shape.H, *[call.shape.G] * 2))
    return q, k, v


def _unpacked(label: str, made: Any, names: tuple[str, ...]) -> tuple[Any, ...]:
    """The parts of a returned tuple."""
    if not isinstance(made, tuple | list) or len(made) != len(names):
        raise ConfigError(
            f"{label} must return a tuple of {', '.join(names)}, got {describe_value(made)}: "
            "correct the class as docs/extending.md describes."
        )
    return tuple(made)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 0
