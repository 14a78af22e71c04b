"""The one class of errors that a user can mend, and how other errors become it."""

import contextlib
from collections.abc import Iterator


class UserError(Exception):
    """Something that the user can mend: bad input, a missing file, no room to write.

    The `mf-zoo` command prints its message as one line and exits with code 2. Errors of any other
    class are faults of the program and keep their traceback.

    Example:

    >>> raise UserError("`epochs` must be at least 1. Received: 0")
    Traceback (most recent call last):
    mf_zoo.errors.UserError: `epochs` must be at least 1. Received: 0
    """


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turns what other code says of its arguments into a `UserError`.

    It belongs around calls whose ValueError, OSError or ImportError can only be about what the
    user asked for.

    Example:

    >>> with user_errors():
    ...     int("ten")
    Traceback (most recent call last):
    mf_zoo.errors.UserError: invalid literal for int() with base 10: 'ten'
    """
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        raise UserError(str(error)) from error


def one_line(error: BaseException, length: int = 600) -> str:
    """The message of an error without line breaks, cut to some 600 characters.

    Example:

    >>> one_line(ValueError("first\\n  second"))
    'first second'
    """
    text = " ".join(str(error).split())
    return text if len(text) <= length else text[: length - 3] + "..."


def short(value: object, length: int = 60) -> str:
    """The value as Python writes it, cut to some 60 characters: for the end of a message.

    Example:

    >>> short([1, 2]), short("x" * 100, 10)
    ('[1, 2]', "'xxxxxx...")
    """
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # a number of more digits than Python prints
        text = f"a {type(value).__name__} too large to print"
    return text if len(text) <= length else text[: length - 3] + "..."
