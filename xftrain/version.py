"""The version, which pyproject.toml repeats, and those of other packages."""

from importlib import metadata

__version__ = "0.1.0"


def installed(package: str) -> str:
    """The version of a package, or that it is not there."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
