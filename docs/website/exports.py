"""An extension of griffe, which reads sources for the reference: what it cannot see in them.

That are packages in folders of other names (`package-dir` in pyproject.toml), and names that
are imported on first use (`mf_zoo.lazy`).
"""

import ast
import re
import tomllib
from pathlib import Path

import griffe

ROOT = Path(__file__).resolve().parents[2]
_DOCTEST = re.compile(r"^>>> .*(?:\n(?!```).+)*", re.MULTILINE)

_FORMULA = re.compile(r"(?<=\n\n)(?: {4}`.*(?:\n|$))+")  # a block of code that is marked as code


def packages() -> dict[str, Path]:
    """The folder of each public package, by its name: `mf_zoo` first."""
    import mf_zoo

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    elsewhere = settings["tool"]["setuptools"]["package-dir"]
    names = ["mf_zoo", *(f"mf_zoo.{name}" for name in mf_zoo._SUBPACKAGES)]
    return {name: ROOT / elsewhere.get(name, name.replace(".", "/")) for name in names}


def lazy_names(folder: Path) -> dict[str, str]:
    """The names that a package imports on first use, with the module that defines each.

    They are what its `__init__.py` hands to `mf_zoo.lazy.attach`, or its `_FUNCTIONS`, or its
    `_PUBLIC`, which it imports for type checkers: then without a module.
    """
    for node in ast.walk(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "lazy.attach":
            return ast.literal_eval(node.args[1])
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_FUNCTIONS":
            return ast.literal_eval(node.value)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_PUBLIC":
            return dict.fromkeys(ast.literal_eval(node.value), "")
    return {}


def summary(folder: Path) -> str:
    """The first line of a package's docstring."""
    source = (folder / "__init__.py").read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)).splitlines()[0]


class Exports(griffe.Extension):
    """Completes `mf_zoo` after it was read."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **_) -> None:
        if pkg.path != "mf_zoo":
            return
        for name, folder in packages().items():
            if name != pkg.path and name.rpartition(".")[2] not in pkg.members:
                beside = griffe.GriffeLoader(
                    search_paths=[folder.parent], modules_collection=loader.modules_collection
                )
                pkg.set_member(name.rpartition(".")[2], beside.load(folder.name))
            package = loader.modules_collection[name]
            for public, module in lazy_names(folder).items():
                if module:
                    package.set_member(public, griffe.Alias(public, f"{name}.{module}.{public}"))
                package.exports = [*(package.exports or ()), public]
            for public in package.exports or ():
                member = package.members[str(public)]
                if isinstance(member, griffe.Module):
                    _replace(package, member)
        _prepare(pkg)


def _replace(package: griffe.Module, module: griffe.Module) -> None:
    """Puts a function in the place of its module of the same name, as importing it does."""
    for name in sorted(map(str, package.exports), key=module.name.__eq__):  # that name last
        member = package.members[name]
        if name == module.name or (
            member.is_alias and member.target_path == f"{module.path}.{name}"
        ):
            package.set_member(name, module.members[name])


def _prepare(thing: griffe.Object) -> None:
    """Makes Markdown of the docstrings of a module or class and of all in it: fences doctests."""
    if thing.docstring:
        text = _DOCTEST.sub(r"```pycon\n\g<0>\n```", thing.docstring.value)
        text = _FORMULA.sub(lambda match: match[0].replace("`", ""), text)
        thing.docstring.value = text.replace("Example:\n\n", "**Example:**\n\n")
    if thing.is_class and "dataclass" in thing.labels and "__init__" in thing.members:
        for parameter in thing.members["__init__"].parameters:
            if isinstance(parameter.default, griffe.ExprCall):  # `setting("quick", "its help")`
                first = next(iter(parameter.default.arguments), None)
                parameter.default = getattr(first, "value", None) or first
    for name, member in list(thing.members.items()):
        if member.is_alias:
            continue
        if name != "__init__" and not member.docstring and (thing.is_class or name[:2] == "__"):
            thing.del_member(name)  # what is above it says what matters
        else:
            _prepare(member)
