"""`python -m mf_zoo.cli`: the `mf-zoo` command."""

import sys

from mf_zoo.cli import main

sys.exit(main())
