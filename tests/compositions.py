"""Hydra's reading of `conf/`, made once for each choice of options.

Most of the time of a composition goes to the files of the chosen options, which are the same for
most tests: 0.1 of 0.14 s. What they come to is kept, and the values of overrides are applied anew.
Of a folder of a test's own the content decides, and the time of day is none of it.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.defaults_list import DefaultsList
from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from xftrain.config.registry import conf_dir

_CREATE = config_loader_impl.create_defaults_list
_COMPOSE = ConfigLoaderImpl._compose_config_from_defaults_list


def _options_in(folder: Path) -> tuple[Any, ...] | None:
    """All that Hydra may read of a folder of options, or None where that is much or unusual."""
    found: list[Any] = []
    for place, folders, files in os.walk(folder):
        entries = [Path(place, name) for name in (*folders, *files)]
        options = [path for path in entries if path.suffix in (".yaml", ".yml")]
        if any(path.is_symlink() for path in entries) or not all(map(Path.is_file, options)):
            return None
        found += [place, *((path, path.read_bytes()) for path in sorted(options))]
        if len(found) > 100:
            return None
    return tuple(found)


def _sources(repo: Any) -> tuple[Any, ...] | None:
    """Where options are looked for and what is there; None if that may not be kept."""
    found: list[Any] = []
    for source in repo.get_sources():
        found.append((source.scheme(), source.path))
        if source.scheme() == "file" and source.path != str(conf_dir()):
            options = _options_in(Path(source.path))
            if options is None:
                return None
            found += options
    return tuple(found)


def _chooses(override: Override, repo: Any) -> bool:
    """Whether it chooses an option, rather than set a value."""
    return not override.is_sweep_override() and repo.group_exists(override.key_or_group)


def keep_compositions(patch: pytest.MonkeyPatch) -> None:
    """From now on in this process."""
    lists: dict[Any, DefaultsList] = {}
    configs: dict[Any, bytes] = {}

    def create_once(
        repo: Any, config_name: str | None, overrides_list: list[Override], **how: Any
    ) -> DefaultsList:
        choices = [one for one in overrides_list if _chooses(one, repo)]
        places = _sources(repo)
        is_plain = all(isinstance(one.value(), str | list | None) for one in choices)
        key = (places, config_name, *(str(one.input_line) for one in choices), *how.items())
        if places is None or not is_plain or "$" in repr(key):
            return _CREATE(repo, config_name, overrides_list, **how)
        if key not in lists:
            lists[key] = _CREATE(repo, config_name, choices, **how)
        found = lists[key]
        values = [
            one for one in overrides_list if one not in choices and not one.is_sweep_override()
        ]
        return DefaultsList(found.defaults, found.defaults_tree, values, found.overrides)

    def compose_once(self: ConfigLoaderImpl, defaults: list[Any], repo: Any) -> Any:
        places = _sources(repo)
        if places is None:
            return _COMPOSE(self, defaults, repo)
        key = (places, *((one.config_path, one.package, one.primary) for one in defaults))
        if key not in configs:
            config = _COMPOSE(self, defaults, repo)
            OmegaConf.clear_cache(config)  # of the time of day
            configs[key] = pickle.dumps(config)
        return pickle.loads(configs[key])

    _use(patch, create_once, compose_once)


def compose_anew(patch: pytest.MonkeyPatch) -> None:
    """As Hydra does."""
    _use(patch, _CREATE, _COMPOSE)


def _use(patch: pytest.MonkeyPatch, create: Any, compose: Any) -> None:
    patch.setattr(config_loader_impl, "create_defaults_list", create)
    patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", compose)
