"""What a job of a sweep was configured as, so that a resumed sweep does not mix configurations.

The same overrides compose to something else once an option file or a default has changed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from xftrain import redaction
from xftrain.errors import SweepRefused
from xftrain.files import read_json, write_json
from xftrain.moved_keys import flat_in_new_keys
from xftrain.printable import one_line, shortened
from xftrain.run_config import CommandConfig
from xftrain.version import __version__

log = logging.getLogger(__name__)

_FILE = ".job.json"  # in a job's folder
_SHOWN = 3  # keys that a sentence lists
_MAX_CHARACTERS = 200  # of a key or a value that a sentence shows


def described(cfg: DictConfig, checked: CommandConfig) -> dict[str, Any]:
    """The configuration of a job by dotted keys, with a digest of each secret that it reads.

    Args:
        cfg: as composed.
        checked: what `config.validate` made of it.
    """
    flat = dict(_flat(redaction.without_secrets(cfg, checked.to_dict())))
    text = json.dumps(flat)
    read = {
        f"oc.env:{name}": digest
        for name, digest in redaction.digests().items()
        if f"oc.env:{name}" in text
    }
    return {"xftrain": __version__, "config": flat, "environment": read}


def write_job_config(description: Mapping[str, Any], run_dir: Path) -> None:
    """Leaves the description in the job's folder."""
    write_json(description, run_dir / _FILE)


def refuse_other_config(description: Mapping[str, Any], run_dir: Path) -> None:
    """Compares a job that is completed with what it would be today.

    Raises:
        SweepRefused: they differ; the result that is there would stand beside those of others.
    """
    saved = read_json(run_dir / _FILE)
    if saved is None or not isinstance(saved.get("config"), dict):
        log.warning("%s does not say how it was configured; its result is kept", run_dir)
        return
    if saved.get("xftrain") != description["xftrain"]:
        said = _cut(str(saved.get("xftrain")))
        log.warning("%s was run with xftrain %s, and this is %s", run_dir, said, __version__)
    environment = saved.get("environment")
    config = flat_in_new_keys(saved["config"])
    before = {**config, **(environment if isinstance(environment, dict) else {})}
    today = {**description["config"], **description["environment"]}
    differing = [
        key for key in dict.fromkeys([*before, *today]) if _text(before, key) != _text(today, key)
    ]
    if differing:
        more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        listed = ", ".join(
            f"{_cut(key)} {_cut(_text(before, key))} -> {_cut(_text(today, key))}"
            for key in differing[:_SHOWN]
        )
        raise SweepRefused(
            f"the job in {run_dir} was completed with another configuration: "
            f"{listed}{more}; set it as it was, choose another "
            f"hydra.sweep.dir, or delete {run_dir / 'result.json'} to run that job again."
        )


def _flat(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a configuration by their dotted keys, as JSON has them."""
    if isinstance(node, Mapping) and (node or not prefix):
        for key, value in node.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, json.loads(json.dumps(node, default=str))


def _text(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key], sort_keys=True) if key in values else "absent"


def _cut(text: str) -> str:
    """A text of a file that anyone may have written, short and as one line."""
    return shortened(one_line(redaction.hidden(text)), _MAX_CHARACTERS)
