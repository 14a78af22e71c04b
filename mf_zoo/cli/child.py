"""`python -m mf_zoo.cli.child`: the `mf-zoo` command for as long as standard input is open."""

import sys

from mf_zoo.with_parent import end_with_standard_input

if __name__ == "__main__":
    end_with_standard_input()
    from mf_zoo.cli import main

    sys.exit(main())
