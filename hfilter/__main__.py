"""``python -m hfilter`` is the command ``hfilter``."""

from __future__ import annotations

import sys

from hfilter.cli import main

if __name__ == "__main__":
    sys.exit(main())
