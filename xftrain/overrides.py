"""What the user typed: dotted overrides made slashed, and Hydra's complaints as one sentence."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    ConfigAttributeError,
    ConfigKeyError,
    InterpolationResolutionError,
    OmegaConfBaseException,
)

from xftrain.errors import ConfigError
from xftrain.moved_keys import moved
from xftrain.printable import one_line
from xftrain.redaction import hidden
from xftrain.registry import PACKAGES, conf_dir, group_of
from xftrain.training.use_instead import use_instead
from xftrain.values import describe, show, unknown_key

# Hydra's own groups, whose options come with Hydra and its plug-ins rather than from conf/
HYDRA_GROUPS = frozenset(
    f"hydra/{group}"
    for group in (
        *("help", "hydra_logging", "job_logging", "launcher", "output"),
        *("sweeper", "sweeper/sampler"),
    )
)
# Their options that come with an extra of this package, and its name.
_EXTRAS = {
    "hydra/launcher/joblib": "sweep",
    "hydra/launcher/submitit_local": "slurm",
    "hydra/launcher/submitit_slurm": "slurm",
    "hydra/sweeper/optuna": "optuna",
}
_DOTTED = re.compile(
    r"(?P<sign>\+\+|\+|~|)(?P<key>[A-Za-z_]\w*(?:\.\w+)+)(?P<package>@[^=]*)?(?P<value>=.*)?",
    re.DOTALL,
)
_LONGEST = 1000  # characters of a sentence with a value of the user's in it
_NAME_BYTES = 240  # a file system has 255, and .yaml is added
_KEY = re.compile(r"(?:(?<=,)|^)[+~]*(?:\w+[./])*(\w+)=")  # of each of several overrides


def groups_in(folder: Path) -> set[str]:
    """The groups of a configuration folder: the folders below it that hold YAML files."""
    files = (path for pattern in ("*.yaml", "*.yml") for path in folder.rglob(pattern))
    return {path.parent.relative_to(folder).as_posix() for path in files} - {"."}


def all_groups(*config_dirs: Path) -> set[str]:
    """Every group that an override can name."""
    return set(HYDRA_GROUPS).union(*map(groups_in, (conf_dir(), *config_dirs)))


def normalise(override: str, groups: Set[str]) -> str:
    """`model.attn=naive` as `model/attn=naive` if that is a group; anything else unchanged.

    Without it Hydra replaces the node by the plain string and says nothing. A mapping or null is
    a value of the node rather than an option.
    """
    match = _DOTTED.fullmatch(override)
    if match is None:
        return override
    group, value = match["key"].replace(".", "/"), match["value"] or ""
    text = value.removeprefix("=").strip()
    if group not in groups or text.startswith("{") or text.lower() == "null":
        return override
    return f"{match['sign']}{group}{match['package'] or ''}{value}"


def normalise_argv(argv: Iterable[str], groups: Set[str]) -> list[str]:
    """Command-line arguments with dotted group overrides made slashed; flags pass unchanged."""
    return [arg if arg.startswith("-") else normalise(arg, groups) for arg in argv]


def as_typed(overrides: Any) -> list[str]:
    """Hydra's list of overrides as plain words, `${...}` in them left as it is."""
    plain = OmegaConf.to_container(overrides, resolve=False)
    return [str(override) for override in plain] if isinstance(plain, list) else []


def slug(text: str) -> str:
    """Overrides as the end of a folder's name: no slashes, no longer than file systems allow.

    A key is its last word alone, where that tells it from the others.
    """
    words = _KEY.findall(text)
    if len(set(words)) == len(words):
        text = _KEY.sub(r"\1=", text)
    safe = re.sub(r"[^\w.,=+-]+", ".", text, flags=re.ASCII)[:149]
    return f"_{safe}" if safe else ""


def refuse_other_text(texts: Iterable[str]) -> None:
    """Refuses what no file can hold: bytes of a command line or a name that are not UTF-8.

    Raises:
        ConfigError: the first such text.
    """
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"{_shown(text)!r} holds bytes that are not UTF-8: use another name or "
                "another value."
            ) from error


def refuse_long_names(overrides: Iterable[str], groups: Set[str]) -> None:
    """Refuses keys and options that no file can be named after, which Hydra looks for on the disk.

    Raises:
        ConfigError: the first of them.
    """
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        is_group = key.partition("@")[0].replace(".", "/") in groups
        names = [*key.split("/"), *(re.split(r"[,()\[\]]", value) if is_group else ())]
        if any(len(name.encode()) > _NAME_BYTES for name in names):
            raise ConfigError(
                f"a key or an option must have at most {_NAME_BYTES} characters, got "
                f"{_shown(override)!r}."
            )


def sentence(error: BaseException, overrides: Iterable[str] = ()) -> str:
    """One sentence for what Hydra or OmegaConf has to say about a configuration."""
    return _shown(_sentence(error, overrides))


def _shown(text: str) -> str:
    """A text of somebody else's as one line, with its middle left out where it is very long.

    Secrets are hidden before anything is left out: afterwards the halves of one are not found.
    """
    text = one_line(hidden(text))
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]}...{text[-_LONGEST // 2 :]}"


def _sentence(error: BaseException, overrides: Iterable[str]) -> str:
    if isinstance(error, RecursionError):
        return "an override or a configuration file is nested too deeply: use fewer levels."
    if isinstance(error, MemoryError):
        return "the configuration needs more memory than there is: use shorter values."
    chained = error.__cause__ or error.__context__
    cause = error if isinstance(error, OmegaConfBaseException) else chained
    text = str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        if extra := _EXTRAS.get(error.missing_cfg_file):
            group, _, name = error.missing_cfg_file.rpartition("/")
            return f'{_dotted(group)}={name} needs an extra: pip install ".[{extra}]".'
        return _no_such_file(error.missing_cfg_file, list(error.options or []), text)
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override)
    if found := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.*?)'[ \n]", text):
        return f"{_dotted(found[1])} has several values; add -m to run one job for each."
    if found := re.search(r"Could not override '([^']*/[^']*)'", text):
        return _where(text) + _no_such_group(_dotted(found[1]))
    if found := re.match(r"Multiple values for ([\w/]+)", text):
        return f"{_dotted(found[1])} is chosen twice; choose one option, without + or a list."
    if found := re.search(r"force-add of config groups is not supported: '(.*)'", text):
        return f"{_dotted(found[1])} chooses an option of a group; leave out the ++."
    if re.search("dynamic value space|different distribution kind", text):  # of Optuna
        return (
            "the study in hydra.sweeper.storage was made with other choices: repeat them, or "
            "choose another hydra.sweeper.study_name."
        )
    if text.startswith("Config group override must be"):
        return _no_word(overrides) or f"{_line(text)}."
    if isinstance(cause, ConfigKeyError | ConfigAttributeError) and cause.full_key:
        return _where(text) + _no_such_key(cause)
    if isinstance(cause, OmegaConfBaseException):
        return _where(text) + _wrong_value(cause)
    return f"{_line(text.partition('Config search path:')[0])}."


def _no_such_file(path: str, options: list[str], text: str) -> str:
    group, _, name = path.rpartition("/")
    if text.startswith("Cannot find primary config"):
        options = sorted(path.stem for path in conf_dir().glob("*.yaml"))
        said = f"--config-name {path}: no such configuration"
    else:
        said = f"{group.replace('/', '.')}={name}: no such option"
        if group in all_groups():  # Hydra may list none, as of a list
            options = options or [path.stem for path in (conf_dir() / group).glob("*.yaml")]
    if not options:
        return f"{said}; there is no group {group}." if group else f"{said}."
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    nearest = f" (nearest: {near[0]})" if near else ""
    return f"{said}; choose one of {', '.join(sorted(options))}{nearest}."


def _unreadable(override: str) -> str:
    if "=" not in override:
        return f"{override!r} is neither a flag nor of the form key=value."
    key = override.partition("=")[0]
    return (
        f"{override!r} cannot be read; a value that holds special characters needs quotes of its "
        f"own, as in '{key}=\"...\"'."
    )


def _no_word(overrides: Iterable[str]) -> str | None:
    """For a number where an option belongs; Hydra does not say which override it was."""
    for override in overrides:
        group, _, value = override.lstrip("+").partition("=")
        if group in all_groups() and not isinstance(yaml.safe_load(value), str | list):
            return _no_such_file(f"{group}/{value}", [], "")
    return None


def _no_such_group(key: str) -> str:
    groups = sorted(_dotted(group) for group in groups_in(conf_dir()))
    if key in groups:
        return f"{key} is not part of the configuration that --config-name chose."
    near = difflib.get_close_matches(key, groups, n=1)
    return f"{key} is not a group; " + (
        f"did you mean {near[0]}?" if near else f"choose one of {', '.join(groups)}."
    )


def _no_such_key(cause: OmegaConfBaseException) -> str:
    key = str(cause.full_key)
    parent, node = key.rpartition(".")[0], cause.parent_node
    if said := use_instead(key):
        return said
    siblings = [str(name) for name in node] if isinstance(node, DictConfig) else []
    known = [f"{parent}.{name}" if parent else name for name in siblings]
    is_option = group_of(parent) in PACKAGES and "name" in siblings
    owner = f"{parent}={node.name}" if is_option else parent or "the configuration"
    hidden_keys = ("hydra", f"{parent}.name" if is_option else "")
    known = [one for one in known if one not in hidden_keys]
    elsewhere = None if moved(key) else _same_name_elsewhere(key, node)
    if elsewhere is not None:
        return f"{key} is not a key of {owner}; did you mean {elsewhere}?"
    return unknown_key(key, known, owner)


def _same_name_elsewhere(key: str, node: Any) -> str | None:
    """The key of that very name in another group, where there is one alone: lr in optim.

    Args:
        key: that does not exist.
        node: its parent in the configuration.
    """
    name = key.rpartition(".")[2]
    found: list[str] = []
    todo = [("", node._get_root() if isinstance(node, DictConfig) else None)]
    while todo:
        place, node = todo.pop()
        for child in map(str, node if isinstance(node, DictConfig) and not node._is_none() else ()):
            full = f"{place}.{child}" if place else child
            if full == "hydra":
                continue
            if child == name:
                found.append(full)
            todo.append((full, node._get_node(child)))
    # of several, that with the fewest groups before it
    found.sort(key=lambda full: (full.count("."), full))
    shallow = [full for full in found if full.count(".") == found[0].count(".")]
    return shallow[0] if len(shallow) == 1 else None


def _wrong_value(cause: OmegaConfBaseException) -> str:
    message = _line(str(cause.msg or cause).partition("\n")[0])
    if not cause.full_key:
        return f"{message}."
    schema = cause.object_type  # a class of the schema, or dict or list, which have no hints
    rule = get_type_hints(schema, include_extras=True).get(str(cause.key)) if schema else None
    if rule is None or isinstance(cause, InterpolationResolutionError):
        return f"{cause.full_key}: {message}."
    return f"{cause.full_key} must be {describe(rule)}, got {show(cause.value)}."


def _where(text: str) -> str:
    """The file that Hydra names, where the fault is in a file."""
    found = re.match(r"In '[^']*': ", text)
    return found[0] if found else ""


def _dotted(text: str) -> str:
    key, equals, value = text.partition("=")
    return key.replace("/", ".") + equals + value


def _line(text: str) -> str:
    return " ".join(text.split()).rstrip(".")


def quoted(value: Path | str) -> str:
    """A value as Hydra's grammar takes it, whatever characters it has."""
    return QuotedString(str(value), Quote.double).with_quotes()


def literal(value: Path | str) -> str:
    """The same for a value that is no interpolation, though `${` may be in it."""
    # OmegaConf reads backslashes as escapes just before `${` and nowhere else
    escaped = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", str(value))
    return quoted(escaped)
