"""Records the configuration of each job, so that a resumed sweep does not mix configurations.

The same overrides compose to another configuration after an option file or a default has changed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from xftrain.config.command_configs import CommandConfig
from xftrain.config.moved_keys import flat_in_new_keys
from xftrain.config.own_code import own_code
from xftrain.errors import SweepRefused
from xftrain.folders.run_folder import JOB_FILE
from xftrain.utils import redaction
from xftrain.utils.files import read_json, write_json
from xftrain.utils.printable import one_line, shortened
from xftrain.version import __version__

log = logging.getLogger(__name__)

_SHOWN = 3  # largest number of keys in a message
_MAX_CHARACTERS = 200  # longest key or value in a message


def job_description(cfg: DictConfig, checked: CommandConfig) -> dict[str, Any]:
    """The configuration of a job by dotted keys, with a digest of each secret that it reads.

    Args:
        cfg: the composed configuration.
        checked: the checked configuration.
    """
    flat = dict(_flat(redaction.without_secrets(cfg, checked.to_dict())))
    text = json.dumps(flat)
    read = {
        f"oc.env:{name}": digest
        for name, digest in redaction.digests().items()
        if f"oc.env:{name}" in text
    }
    made = {"xftrain": __version__, "config": flat, "environment": read}
    # imports the user's own classes, if there are any
    return made | ({"own_code": code} if (code := own_code(checked.to_dict())) else {})


def write_job_config(description: Mapping[str, Any], run_dir: Path) -> None:
    """Writes the description into the job's folder."""
    write_json(description, run_dir / JOB_FILE)


def refuse_other_config(description: Mapping[str, Any], run_dir: Path) -> None:
    """Compares the recorded configuration of a completed job with today's.

    Raises:
        SweepRefused: they differ, so the sweep would mix results of two configurations.
    """
    saved = read_json(run_dir / JOB_FILE)
    if saved is None or not isinstance(saved.get("config"), dict):
        log.warning("%s has no record of its configuration; its result is kept", run_dir)
        return
    if saved.get("xftrain") != description["xftrain"]:
        version = _cut(str(saved.get("xftrain")))
        log.warning("%s was run with xftrain %s, and this is %s", run_dir, version, __version__)
    for target, digest in description.get("own_code", {}).items():
        code = saved.get("own_code")
        if isinstance(code, dict) and code.get(target, digest) != digest:
            log.warning(
                "%s was run with other code of %s: its result is kept, and may not be comparable "
                "with those of later jobs",
                *(run_dir, target),
            )
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
    """Yields the values of a configuration by dotted key, in JSON types."""
    if isinstance(node, Mapping) and (node or not prefix):
        for key, value in node.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, json.loads(json.dumps(node, default=str))


def _text(values: Mapping[str, Any], key: str) -> str:
    return json.dumps(values[key], sort_keys=True) if key in values else "absent"


def _cut(text: str) -> str:
    """Shortens a text from an untrusted file to one short line."""
    return shortened(one_line(redaction.hidden(text)), _MAX_CHARACTERS)
