"""``python -m deepsentinel.cli``."""

import sys

from deepsentinel.cli import main

if __name__ == "__main__":
    sys.exit(main())
