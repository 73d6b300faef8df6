"""``python -m hanok.cli``: the same as the command ``hanok``."""

import sys

from hanok.cli.main import main

sys.exit(main())
