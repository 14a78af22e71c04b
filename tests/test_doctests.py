"""Every example in a docstring runs and gives what it shows."""

import contextlib
import doctest
import importlib
import io
import pkgutil
import re

import keras
import numpy as np
import pytest

import mf_zoo

# Its example needs a package that tests do without.
_LEFT_OUT = {"mf_zoo.tuning.ray"}


def _modules():
    yield mf_zoo
    # In a checkout `applications` and `weights` lie beside the package, not in it.
    roots = [mf_zoo, mf_zoo.applications, mf_zoo.weights]
    names = {root.__name__ for root in roots[1:]}
    for root in roots:
        walk = pkgutil.walk_packages(root.__path__, f"{root.__name__}.")
        names |= {found.name for found in walk}
    for name in sorted(names - _LEFT_OUT):
        if not name.endswith("__main__"):
            yield importlib.import_module(name)


def _examples():
    """Each docstring with examples once, by the name of its object."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = {}
    for module in _modules():
        package = importlib.import_module(module.__name__.rpartition(".")[0] or "mf_zoo")
        public = {
            name: getattr(package, name)
            for name in getattr(package, "__all__", ())
            if package is not mf_zoo
        }
        names = {"mf_zoo": mf_zoo, "keras": keras, "np": np, **public, **vars(module)}
        for test in finder.find(module, extraglobs=names):
            if test.examples:
                found.setdefault((test.filename, test.lineno), test)
    return sorted(found.values(), key=lambda test: test.name)


class _Checker(doctest.OutputChecker):
    """Shapes are tuples, whatever the backend calls them."""

    def check_output(self, want, got, optionflags):
        got = re.sub(r"(?:torch\.Size|TensorShape)\(\[([^]]*)\]\)", r"(\1)", got)
        return super().check_output(want, got, optionflags)


@pytest.mark.once_on_torch
@pytest.mark.parametrize("test", _examples(), ids=lambda test: test.name)
def test_the_example_runs_and_gives_what_it_shows(test, tmp_path, monkeypatch, registries):
    monkeypatch.chdir(tmp_path)
    runner = doctest.DocTestRunner(
        checker=_Checker(),
        verbose=False,
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE,
    )
    report = io.StringIO()
    with contextlib.redirect_stderr(io.StringIO()):
        runner.run(test, out=report.write, clear_globs=False)
    assert not runner.failures, report.getvalue()


@pytest.mark.once_on_torch
def test_public_objects_with_examples_are_found():
    names = {test.name for test in _examples()}
    assert {
        "mf_zoo.layers.mean_field_stage.MeanFieldStage",
        "mf_zoo.optimizers.mean_field_sgd.MeanFieldSGD",
        "mf_zoo.training.recipes.get_recipe",
    } <= names
