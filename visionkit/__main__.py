"""`python -m visionkit` is the `visionkit` command."""

import sys

from visionkit.cli import main

sys.exit(main())
