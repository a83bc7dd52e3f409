"""Draws the attention mask and bias of the first batch as an image in TensorBoard."""

from __future__ import annotations

import textwrap
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure

from xftrain.callbacks.metrics import not_training
from xftrain.config.fields import ImageSide
from xftrain.interfaces import AttnBias, Batch, format_layers
from xftrain.train.log_text import log_text
from xftrain.train.module import training_module
from xftrain.utils.plot_style import new_figure, pixels

_TAG = "attention/pattern"
_SIDE_INCHES = 2.8  # side of the panel of one head
_NUM_HEADS = 4  # maximum number of heads drawn
_HIDDEN = (189, 189, 189)  # grey
_FAINT, _STRONG = np.array([(222, 235, 247), (8, 69, 148)], np.float32)  # blue
_EDGE = (213, 94, 0)  # orange

Pixels = npt.NDArray[np.uint8]


class AttentionPattern(Callback):
    """The attention pattern of the chosen bias and packing, drawn once, before the first step.

    Args:
        num_positions: number of positions to draw, from the first one of a row; the number of
            pixels is quadratic in it.
    """

    modifies_weights = False

    def __init__(self, *, num_positions: ImageSide = 128) -> None:
        self.num_positions = num_positions
        self._is_drawn = False

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Draws the pattern of the first batch."""
        loggers = [x for x in trainer.loggers if isinstance(x, TensorBoardLogger)]
        if self._is_drawn or not loggers or not trainer.is_global_zero:
            return
        self._is_drawn = True
        num_rows, num_positions = batch.shape_BM
        num_drawn = min(self.num_positions, num_positions)
        with not_training(trainer):
            model = training_module(pl_module).model
            cases = model.attention_cases(num_rows, num_positions, batch.seqlens)
            for number, (call, layers) in enumerate(cases):
                tag = _TAG if len(cases) == 1 else f"{_TAG}/{number + 1}"
                heads = differing_heads(call.bias)
                part = cropped(call.bias, num_drawn, heads)
                in_layers = "" if len(cases) == 1 else f", in {format_layers(layers)}"
                title = f"attention pattern{in_layers}: {describe(part)}"
                image = picture(draw(part, num_drawn), heads, title)
                for logger in loggers:
                    logger.experiment.add_image(tag, image, trainer.global_step, dataformats="HWC")
                text = (
                    f"Query (row) and key (column), the first {num_drawn} of {num_positions} "
                    f"positions of the first batch{in_layers}, {describe(part)}: grey is hidden, "
                    "and the darker the blue, the larger exp(bias) in its row; "
                    f"{_panel_heads(heads)}."
                )
                log_text(loggers, tag, textwrap.fill(text, 100), trainer.global_step)


def differing_heads(bias: AttnBias) -> list[int]:
    """Evenly spaced head indices, or one index if all heads have the same pattern."""
    num_heads = len(bias.slopes or ())
    if bias.additive_HMM is not None:
        num_heads = max(num_heads, bias.additive_HMM.shape[0])
    last = max(num_heads - 1, 0)
    return sorted({round(last * n / (_NUM_HEADS - 1)) for n in range(_NUM_HEADS)})


def cropped(bias: AttnBias, num_positions: int, heads: list[int]) -> AttnBias:
    """The bias restricted to the first positions of a row and to some heads."""
    seqlens, slopes, additive_HMM = bias.seqlens, bias.slopes, bias.additive_HMM
    if seqlens is not None:
        seqlens = tuple(
            min(end, num_positions) - start
            for start, end in bias.segments(num_positions)
            if start < num_positions
        )
    if slopes is not None:
        slopes = tuple(slopes[head] for head in heads)
    if additive_HMM is not None:
        own = heads if additive_HMM.shape[0] > 1 else [0]
        additive_HMM = additive_HMM[own, :num_positions, :num_positions]
    return replace(bias, seqlens=seqlens, slopes=slopes, additive_HMM=additive_HMM)


def draw(bias: AttnBias, num_positions: int) -> Pixels:
    """The pattern as pixels [heads, queries, keys, 3].

    Blue shows `exp(bias)` divided by the maximum of its row, which is the relative attention of a
    query whose scores are the bias alone. Orange marks hidden pairs at the edge of each packed
    document, and gray the other hidden pairs.
    """
    # numpy, since waking torch's thread pool would cost more than this work
    bias_HMM = bias.materialize(num_positions, dtype=torch.float32).detach().numpy()
    is_hidden = np.isneginf(bias_HMM)
    highest_HM1 = bias_HMM.max(-1, keepdims=True, initial=-np.inf, where=~is_hidden)
    weight_HMM = np.exp(bias_HMM - np.where(np.isneginf(highest_HM1), 0.0, highest_HM1))
    pixels_HMM3 = (_FAINT + (_STRONG - _FAINT) * weight_HMM[..., None]).astype(np.uint8)
    pixels_HMM3[is_hidden] = _HIDDEN
    if bias.seqlens is not None:
        pixels_HMM3[is_hidden & _edges(bias, num_positions)] = _EDGE
    return pixels_HMM3


def figure(pixels_HMM3: Pixels, heads: list[int], title: str) -> Figure:
    """The pattern of each head with its axes, side by side.

    Args:
        pixels_HMM3: what `draw` returns.
        heads: indices of the heads, from 0; the figure and the text count from 1.
        title: title of the figure.
    """
    num_positions = pixels_HMM3.shape[1]
    plot = new_figure(1.0 + _SIDE_INCHES * len(heads), 0.9 + _SIDE_INCHES)
    panels = plot.subplots(1, len(heads), squeeze=False, sharey=True)[0]
    for axis, pixels_MM3, head in zip(panels, pixels_HMM3, heads, strict=True):
        edges = (-0.5, num_positions - 0.5)
        axis.imshow(pixels_MM3, interpolation="nearest", extent=(*edges, *reversed(edges)))
        axis.set_title(f"head {head + 1}" if len(heads) > 1 else "all heads", fontsize=9)
        axis.tick_params(labelsize=8)
        axis.locator_params(nbins=5, integer=True)
        axis.spines[:].set_visible(False)
    panels[0].set_ylabel("position of the query", fontsize=9)
    plot.supxlabel("position of the key", fontsize=9)
    plot.suptitle(textwrap.fill(title, 30 + 32 * len(heads)), fontsize=10)
    return plot


def picture(pixels_HMM3: Pixels, heads: list[int], title: str) -> Pixels:
    """Renders `figure` as pixels [height, width, 3]."""
    return pixels(figure(pixels_HMM3, heads, title))


def _edges(bias: AttnBias, num_positions: int) -> npt.NDArray[np.bool_]:
    """A mask of the outermost pairs of query and key of each document."""
    edges = np.zeros((num_positions, num_positions), np.bool_)
    for start, end in bias.segments(num_positions):
        for edge in (start, end - 1):
            edges[edge, start:end] = edges[start:end, edge] = True
    return edges


def describe(bias: AttnBias) -> str:
    """A description of the bias in words: mask, window, scale, soft cap and packing."""
    facts = ["causal" if bias.causal else "bidirectional"]
    if bias.window is not None:
        facts.append(f"a window of {bias.window} keys")
    if bias.slopes is not None:
        facts.append("ALiBi")
    if bias.additive_HMM is not None:
        facts.append("a bias tensor")
    if bias.scale is not None:
        facts.append(f"scores scaled by {bias.scale:g}")
    if bias.softcap is not None:
        facts.append(f"scores capped at {bias.softcap:g}")
    if bias.seqlens is not None:
        facts.append(f"documents packed into the row: {len(bias.seqlens)}, orange at their edges")
    return ", ".join(facts)


def _panel_heads(heads: list[int]) -> str:
    if len(heads) == 1:
        return "all heads are alike"
    return f"from left to right the heads {', '.join(str(head + 1) for head in heads)}"
