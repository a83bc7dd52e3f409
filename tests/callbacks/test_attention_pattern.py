"""The picture of the attention pattern is the bias that the first batch is trained with."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.train.runs import model_and_data, run
from xftrain.callbacks import attention_pattern
from xftrain.callbacks.attention_pattern import (
    cropped,
    describe,
    differing_heads,
    draw,
    picture,
)
from xftrain.interfaces import AttnBias
from xftrain.model.bias.alibi import slopes

SMALL = ("model.dim=16", "batch_tokens=64", "max_steps=1")
M, N = 200, 96  # positions, and how many are drawn
SEQLENS = (40, 1, 70, 89)

BIASES = {
    "causal": AttnBias(),
    "window": AttnBias(window=9),
    "full-packed": AttnBias(causal=False, seqlens=SEQLENS),
    "window-packed": AttnBias(window=9, seqlens=SEQLENS),
    "alibi": AttnBias(slopes=slopes(8)),
    "alibi-packed": AttnBias(slopes=slopes(8), seqlens=SEQLENS),
    # a query that sees nothing, and biases that favor a key: no row's largest is 0
    "tensor": AttnBias(additive_HMM=torch.randn(2, M, M).masked_fill(torch.eye(M) > 0, -torch.inf)),
}


class Own:
    """A bias of the user's own, a tensor of which gradients are taken."""

    def build(self, num_heads: int, seqlens: tuple[int, ...] | None) -> AttnBias:
        """ALiBi of one slope, on both sides of the query."""
        distance = (torch.arange(16.0)[:, None] - torch.arange(16.0)).abs()
        return AttnBias(additive_HMM=-distance.expand(2, 16, 16).clone().requires_grad_())


@pytest.mark.parametrize("name", BIASES)
def test_the_picture_is_the_beginning_of_what_the_bias_means(name: str) -> None:
    bias = BIASES[name]
    heads = differing_heads(bias)
    assert heads == {"alibi": [0, 2, 5, 7], "tensor": [0, 1]}.get(name.partition("-")[0], [0])
    whole_HMM = bias.materialize(M)
    drawn = draw(cropped(bias, N, heads), N)
    assert drawn.shape == (len(heads), N, N, 3)
    for head, pixels in zip(heads, drawn, strict=True):
        meant_NN = whole_HMM[head, :N, :N].numpy()
        grey, orange = (
            (pixels == color).all(-1)
            for color in (attention_pattern._HIDDEN, attention_pattern._EDGE)
        )
        assert ((grey | orange) == np.isneginf(meant_NN)).all()
        assert orange.any() == (name in ("window-packed", "alibi-packed"))
        for shades, row in zip(pixels[..., 0].astype(int), meant_NN, strict=True):
            seen = row > -np.inf
            if seen.any():
                weight = np.exp(row[seen] - row[seen].max())
                assert np.abs(shades[seen] - (222 - (222 - 8) * weight)).max() <= 1


def test_documents_have_an_edge() -> None:
    (pixels,) = draw(cropped(BIASES["window-packed"], N, [0]), N)
    orange = (pixels == attention_pattern._EDGE).all(-1)
    assert orange[41, 42:].all() and orange[41:-1, -1].all()  # the second long one, cut at the end
    assert orange[9:40, 0].all() and not orange[:9, 0].any()  # what is seen stays as it is
    assert not orange[41:, :41].any() and not orange[1:39, 1:39].any()


def test_a_million_positions_are_no_work() -> None:
    bias = AttnBias(slopes=slopes(4), seqlens=(2**20,))  # M x M would be terabytes
    assert draw(cropped(bias, 8, [0]), 8).shape == (1, 8, 8, 3)


def test_the_figure_has_axes_a_title_and_the_numbers_of_its_heads() -> None:
    heads = [0, 2, 5, 7]
    drawn = draw(cropped(BIASES["alibi-packed"], N, heads), N)
    made = attention_pattern.figure(drawn, heads, "attention pattern: causal, ALiBi")
    assert [axis.get_title() for axis in made.axes] == ["head 1", "head 3", "head 6", "head 8"]
    assert made.get_suptitle() == "attention pattern: causal, ALiBi"
    assert (made.axes[0].get_ylabel(), made.get_supxlabel()) == (
        "position of the query",
        "position of the key",
    )
    for axis, pixels in zip(made.axes, drawn, strict=True):
        (image,) = axis.images
        assert (image.get_array() == pixels).all()
        assert axis.get_ylim() == (N - 0.5, -0.5)  # the first query above
    (alone,) = attention_pattern.figure(drawn[:1], [0], "x").axes
    assert alone.get_title() == "all heads"


def _shown(run_dir) -> tuple[np.ndarray, str]:
    events = EventAccumulator(str(run_dir))
    events.Reload()
    (image,) = events.Images("attention/pattern")
    (text,) = events.Tensors("attention/pattern/text_summary")[0].tensor_proto.string_val
    said = " ".join(text.decode().split())  # it stands on several lines
    return np.asarray(Image.open(io.BytesIO(image.encoded_image_string))), said


def test_a_run_shows_the_pattern_of_its_first_batch(tmp_path) -> None:
    packed = ("data=counting_packed", "model.bias=alibi", "model.bias.window=7", *SMALL)
    run(tmp_path, *packed, "callbacks.attention_pattern.num_positions=20")
    image, said = _shown(tmp_path)
    seqlens = model_and_data(*packed)[1].batch("train", 0).seqlens
    bias = AttnBias(window=7, slopes=slopes(2), seqlens=seqlens)
    title = f"attention pattern: {describe(cropped(bias, 20, [0, 1]))}"
    assert (image == picture(draw(cropped(bias, 20, [0, 1]), 20), [0, 1], title)).all()
    assert "the first 20 of 64 positions" in said and "heads 1, 2" in said
    assert "causal, a window of 7 keys, ALiBi, documents packed into the row: 3, " in said


def test_a_bias_of_the_users_own_is_drawn(tmp_path) -> None:
    (tmp_path / "model" / "bias").mkdir(parents=True)
    own = "_target_: tests.callbacks.test_attention_pattern.Own\n"
    (tmp_path / "model" / "bias" / "own.yaml").write_text(own)
    run(tmp_path / "run", "model.bias=own", *SMALL, config_dir=tmp_path)
    image, said = _shown(tmp_path / "run")
    bias = AttnBias(additive_HMM=Own().build(2, None).additive_HMM)
    title = "attention pattern: causal, a bias tensor"
    assert (image == picture(draw(cropped(bias, 16, [0, 1]), 16), [0, 1], title)).all()
    assert "causal, a bias tensor" in said


def test_nothing_is_drawn_where_there_is_no_tensorboard(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(attention_pattern, "draw", None)
    run(tmp_path, "logger=csv", *SMALL)
