"""``python -m qatcore``."""

import sys

from ._cli.command import main

if __name__ == "__main__":
    sys.exit(main())
