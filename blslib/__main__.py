"""``python -m blslib``."""

import sys

from blslib.lab.cli import main

if __name__ == "__main__":
    sys.exit(main())
