"""Ends this process with the one that started it. As a script: `with_parent.py SCRIPT ARGUMENTS`.

Whoever starts it holds the other end of a pipe, its standard input, and never writes. When that
process dies, by whatever death, the pipe is closed, and this one ends at once: what it does leaves
its files whole at any moment. It imports nothing of mf_zoo.
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
    import runpy

    del sys.argv[0]
    runpy.run_path(sys.argv[0], run_name="__main__")
