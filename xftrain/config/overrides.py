"""Normalizes overrides: slashes for dotted groups; refuses text that no file can hold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import OmegaConf

from xftrain.config.registry import conf_dir
from xftrain.errors import ConfigError
from xftrain.utils.printable import one_line
from xftrain.utils.redaction import hidden

# Hydra's own groups, whose options come with Hydra and its plug-ins rather than from conf/
HYDRA_GROUPS = frozenset(
    f"hydra/{group}"
    for group in (
        *("help", "hydra_logging", "job_logging", "launcher", "output"),
        *("sweeper", "sweeper/sampler"),
    )
)
_DOTTED = re.compile(
    r"(?P<sign>\+\+|\+|~|)(?P<key>[A-Za-z_]\w*(?:\.\w+)+)(?P<package>@[^=]*)?(?P<value>=.*)?",
    re.DOTALL,
)
_OPEN_KEY = re.compile(r"data\.sources(?:\.[\w.-]+)?=")
_MAX_SHOWN = 1000  # characters of a user's text in a message
_NAME_BYTES = 240  # file systems allow 255, and .yaml is appended
_KEY = re.compile(r"(?:(?<=,)|^)[+~]*(?:\w+[./])*(\w+)=")  # the key of each override in a list


def groups_in(folder: Path) -> set[str]:
    """The groups of a configuration folder: the folders below it that hold YAML files."""
    files = (path for pattern in ("*.yaml", "*.yml") for path in folder.rglob(pattern))
    return {path.parent.relative_to(folder).as_posix() for path in files} - {"."}


def all_groups(*config_dirs: Path) -> set[str]:
    """Every group that an override can name."""
    return set(HYDRA_GROUPS).union(*map(groups_in, (conf_dir(), *config_dirs)))


def normalize(override: str, groups: Set[str]) -> str:
    """Turns `model.attn=naive` into `model/attn=naive` if `model/attn` is a group.

    Otherwise Hydra would silently replace the node by the plain string. A mapping or null is a
    value of the node rather than an option, so such an override is unchanged.

    A key below a mapping with names of the user's own gets `++`, so that it need not exist.
    """
    if _OPEN_KEY.match(override):
        return f"++{override}"
    match = _DOTTED.fullmatch(override)
    if match is None:
        return override
    group, value = match["key"].replace(".", "/"), match["value"] or ""
    text = value.removeprefix("=").strip()
    if group not in groups or text.startswith("{") or text.lower() == "null":
        return override
    return f"{match['sign']}{group}{match['package'] or ''}{value}"


def normalize_argv(argv: Iterable[str], groups: Set[str]) -> list[str]:
    """Writes the dotted group overrides of a command line with slashes; flags are unchanged."""
    return [arg if arg.startswith("-") else normalize(arg, groups) for arg in argv]


def override_strings(overrides: Any) -> list[str]:
    """Hydra's list of overrides as strings, with `${...}` unresolved."""
    plain = OmegaConf.to_container(overrides, resolve=False)
    return [str(override) for override in plain] if isinstance(plain, list) else []


def slug(text: str) -> str:
    """Turns overrides into the end of a folder name: no slashes, within the length limit.

    A key is shortened to its last word if that is unique.
    """
    words = _KEY.findall(text)
    if len(set(words)) == len(words):
        text = _KEY.sub(r"\1=", text)
    safe = re.sub(r"[^\w.,=+-]+", ".", text, flags=re.ASCII)[:149]
    return f"_{safe}" if safe else ""


def path_slug(text: str) -> str:
    """Like `slug`, without `=` and `,`, which would need quotes in an override's value."""
    return slug(text).translate({ord("="): "-", ord(","): "_"})


def refuse_non_utf8(texts: Iterable[str]) -> None:
    """Refuses text of a command line or a name that is not UTF-8, which no file can hold.

    Raises:
        ConfigError: names the first such text.
    """
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"{as_shown(text)!r} holds bytes that are not UTF-8: use another name or "
                "another value."
            ) from error


def refuse_long_names(overrides: Iterable[str], groups: Set[str]) -> None:
    """Refuses keys and options too long for a file name, since Hydra looks for such files.

    Raises:
        ConfigError: names the first of them.
    """
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        is_group = key.partition("@")[0].replace(".", "/") in groups
        names = [*key.split("/"), *(re.split(r"[,()\[\]]", value) if is_group else ())]
        if any(len(name.encode()) > _NAME_BYTES for name in names):
            raise ConfigError(
                f"a key or an option must have at most {_NAME_BYTES} characters, got "
                f"{as_shown(override)!r}."
            )


def as_shown(text: str) -> str:
    """Shows untrusted text as one line, with the middle left out if it is very long.

    Secrets are hidden first, since a secret that is cut in two would not be found.
    """
    text = one_line(hidden(text))
    return (
        text
        if len(text) <= _MAX_SHOWN
        else f"{text[: _MAX_SHOWN // 2]}...{text[-_MAX_SHOWN // 2 :]}"
    )


def quoted(value: Path | str) -> str:
    """Quotes a value for Hydra's override grammar."""
    return QuotedString(str(value), Quote.double).with_quotes()


def literal(value: Path | str) -> str:
    """Quotes a value for Hydra's override grammar and escapes any `${` in it."""
    # OmegaConf treats backslashes as escapes only directly before `${`
    escaped = re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", str(value))
    return quoted(escaped)
