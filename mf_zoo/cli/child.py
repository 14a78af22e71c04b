"""`python -m mf_zoo.cli.child`: the `mf-zoo` command for as long as standard input is open.

Whoever starts it holds the other end of a pipe and never writes. When that process dies, by
whatever death, the pipe is closed, and this one ends at once: what it does leaves its files whole
at any moment.
"""

import os
import sys
import threading


def end_with_standard_input() -> None:
    """Ends this process, at once, when its standard input ends."""

    def wait() -> None:
        # The descriptor itself: a reader blocked in `sys.stdin` would hold up a normal exit.
        while os.read(0, 1024):
            pass
        os._exit(143)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    end_with_standard_input()
    from mf_zoo.cli import main

    sys.exit(main())
