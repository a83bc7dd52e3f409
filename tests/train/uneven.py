"""A data source of the user's own whose training batches have unequal numbers of labels."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from xftrain.data._seeding import generator
from xftrain.data.counting import Counting
from xftrain.interfaces import IGNORED_LABEL, Batch, Split


class Uneven(Counting):
    """Masks labels of training batches, so that each has from 1 to all but one of its labels."""

    def batch(self, split: Split, step: int, rank: int = 0) -> Batch:
        made = super().batch(split, step, rank)
        if split == "val":
            return made
        labels = made.labels_BM.clone()
        num_labels = int(generator(5, "train", step, rank).integers(1, labels.numel()))
        labels.view(-1)[num_labels:] = IGNORED_LABEL
        return replace(made, labels_BM=labels)


def write_uneven(folder: Path) -> Path:
    """Makes a folder for `--config-dir` that has the option `data=uneven`."""
    path = folder / "data" / "uneven.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(
        f"_target_: {Uneven.__module__}.Uneven\nvocab_size: 64\nnum_val_batches: 2\n"
        "batch_size: null\nstop_at_accuracy: null\n"
    )
    return folder
