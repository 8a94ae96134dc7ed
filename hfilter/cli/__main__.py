"""``python -m hfilter.cli`` is the command ``hfilter``."""

from __future__ import annotations

import sys

from hfilter.cli import main

sys.exit(main())
