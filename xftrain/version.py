"""The version of this package, which pyproject.toml repeats, and of installed packages."""

import hashlib
from importlib import metadata
from pathlib import Path

__version__ = "0.1.0"


def code_version() -> str:
    """The version with a digest of the package's sources, which change between releases."""
    package = Path(__file__).resolve().parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package)} {len(content)}\n".encode() + content)
    return f"{__version__}+{digest.hexdigest()[:12]}"


def installed_version(package: str) -> str:
    """The version of a package, or `not installed`."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
