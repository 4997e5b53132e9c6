"""``python -m wgpy``."""

import sys

from wgpy.cli import main

if __name__ == "__main__":
    sys.exit(main())
