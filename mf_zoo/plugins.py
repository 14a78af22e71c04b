"""Modules of others that register networks, datasets or quadrature rules with mf_zoo.

The `mf-zoo` command imports them before it runs a subcommand: those that `--import` names, those
in the environment variable `MF_ZOO_IMPORT` (several are separated by colons), and those of
installed packages that declare them as an entry point of the group `mf_zoo`:

```toml
[project.entry-points.mf_zoo]
my_networks = "my_package.networks"
```

A program that uses mf_zoo as a library imports its own modules and needs nothing of this.
"""

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from mf_zoo.errors import UserError

GROUP = "mf_zoo"
VARIABLE = "MF_ZOO_IMPORT"
_SEPARATOR = ":"


def load(modules: Iterable[str]) -> None:
    """Imports modules, which may lie in the working directory.

    Args:
        modules: Their names, such as `"my_package.networks"`.

    Raises:
        UserError: If there is no such module, or one that it imports is missing.

    Example:

    >>> mf_zoo.plugins.load(["colorsys"])
    """
    # The command's script does not look for modules where it is run, which is where a user's are.
    with contextlib.suppress(OSError):
        if not {"", os.getcwd()} & set(sys.path):
            sys.path.append(os.getcwd())
    for name in modules:
        if not all(part.isidentifier() for part in name.split(".")):
            raise UserError(
                "A module to import must be named as in Python, such as my_package.networks. "
                f"Received: {name!r}"
            )
        _load(f"The module {name!r}", importlib.import_module, name)


def load_entry_points() -> None:
    """Imports what the environment variable `MF_ZOO_IMPORT` and installed packages name.

    Raises:
        UserError: If one of them cannot be imported.
    """
    import importlib.metadata

    load(name for name in os.environ.get(VARIABLE, "").split(_SEPARATOR) if name)
    for entry in importlib.metadata.entry_points(group=GROUP):
        _load(f"The entry point {entry.name!r} of an installed package", entry.load)


@contextlib.contextmanager
def handed_on(modules: Iterable[str]) -> Iterator[None]:
    """Has child processes that run the `mf-zoo` command import modules too.

    Args:
        modules: Their names, which are added to the environment variable `MF_ZOO_IMPORT`.
    """
    before = os.environ.get(VARIABLE)
    named = [name for name in (before or "").split(_SEPARATOR) if name]
    if added := [name for name in dict.fromkeys(modules) if name not in named]:
        os.environ[VARIABLE] = _SEPARATOR.join([*named, *added])
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before


def _load(what: str, function: Callable[..., Any], *arguments: str) -> None:
    try:
        function(*arguments)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"{what} must be one that Python can import. Received: {type(error).__name__}: {error}"
        ) from error
