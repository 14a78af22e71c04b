"""Modules of others: `--import`, the environment variable and entry points."""

import os
import subprocess
import sys

import pytest

from mf_zoo import cli, plugins
from mf_zoo.errors import UserError

pytestmark = pytest.mark.once


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module in the working directory; returns what it has done."""
    (tmp_path / "of_a_user.py").write_text("import sys\nsys.imported_of_a_user = True\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setattr(sys, "imported_of_a_user", False, raising=False)
    yield lambda: sys.imported_of_a_user
    sys.modules.pop("of_a_user", None)


@pytest.mark.parametrize(
    "arguments",
    [["--import", "of_a_user", "recipes"], ["recipes", "--import", "of_a_user", "--json"]],
)
def test_the_command_imports_a_module(module, arguments, capsys):
    assert cli.main(arguments) == 0
    assert module() and plugins.VARIABLE not in os.environ


def test_modules_of_both_places_are_imported(module, tmp_path, capsys):
    (tmp_path / "of_another.py").write_text("import of_a_user\nof_a_user.seen = True\n")
    arguments = ["--import", "of_a_user", "recipes", "--import", "of_another"]
    assert cli.main(arguments) == 0
    assert sys.modules["of_a_user"].seen
    sys.modules.pop("of_another")


def test_the_environment_names_modules(module, monkeypatch, capsys):
    monkeypatch.setenv(plugins.VARIABLE, "colorsys:of_a_user")
    assert cli.main(["recipes"]) == 0
    assert module()


def test_child_processes_are_told(module, monkeypatch):
    code = "from mf_zoo import plugins; plugins.load_entry_points(); import sys\n"
    code += "print(sys.imported_of_a_user)"
    monkeypatch.setenv(plugins.VARIABLE, "colorsys")
    with plugins.handed_on(["of_a_user", "colorsys"]):
        assert os.environ[plugins.VARIABLE] == "colorsys:of_a_user"
        process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.stdout == "True\n", process.stderr
    assert os.environ[plugins.VARIABLE] == "colorsys"


def test_entry_points_of_installed_packages_are_imported(module, tmp_path, monkeypatch):
    information = tmp_path / "of_a_user-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: of-a-user\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[mf_zoo]\nmine = of_a_user\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.load_entry_points()
    assert module()
    (information / "entry_points.txt").write_text("[mf_zoo]\nmine = a_missing_module\n")
    with pytest.raises(UserError, match=r"entry point 'mine' .*Received: .*a_missing_module"):
        plugins.load_entry_points()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a_missing_module", "Received: ModuleNotFoundError: No module named 'a_missing_module'"),
        ("broken", "Received: ValueError: `classes` must be positive"),
        ("folder/broken.py", "such as my_package.networks. Received: 'folder/broken.py'"),
        ("", "Received: ''"),
    ],
)
def test_modules_that_cannot_be_imported(module, tmp_path, name, message, capsys):
    (tmp_path / "broken.py").write_text('raise ValueError("`classes` must be positive")')
    assert cli.main(["recipes", "--import", name]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith("mf-zoo: error: ") and message in captured.err
