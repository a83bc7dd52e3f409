"""Runs the command line: `python -m xftrain`."""

import sys

from xftrain.launch.cli import main

if __name__ == "__main__":
    sys.exit(main())
