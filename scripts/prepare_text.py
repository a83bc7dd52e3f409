"""Prepares the token files of a corpus ahead of time; a run with the same options finds them.

python scripts/prepare_text.py corpus/ --tokenizer bpe --vocab-size 8192
"""

import argparse
import logging
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from xftrain.data.tokens.cache import prepare  # noqa: E402
from xftrain.errors import ConfigError, RunError  # noqa: E402


def main() -> int:
    """Prints files, skipped files and tokens; returns 2 for wrong options and 1 for a failure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("path", nargs="+", help="files, folders and globs (data.path)")
    parser.add_argument("--val-path", nargs="+", help="the same for validation (data.val_path)")
    parser.add_argument("--text-key", default="text", help="of the text in a record")
    parser.add_argument(
        "--tokenizer", default="bytes", help="bytes, bpe, or a tokenizer.json or its folder"
    )
    parser.add_argument("--vocab-size", type=int, help="default: 257 for bytes, 8192 for bpe")
    parser.add_argument("--val-fraction", type=float, default=0.1)
    parser.add_argument(
        "--follow-links", action="store_true", help="also follow links that lead out of the folder"
    )
    parser.add_argument("--cache-dir", help="default: ~/.cache/xftrain")
    parser.add_argument("--num-workers", type=int, help="default: one for each CPU")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        cache = prepare(**vars(options))
    except (ConfigError, RunError) as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1
    print(f"{cache.folder}: vocabulary of {cache.tokenizer.vocab_size:,}; {cache.summary}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
