"""`python -m xftrain`."""

import sys

from xftrain.cli import main

if __name__ == "__main__":
    sys.exit(main())
