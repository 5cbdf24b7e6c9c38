"""python -m rm_runtime: the command rm-runtime."""

import sys

from rm_runtime.cli import main

sys.exit(main())
