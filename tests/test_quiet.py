"""What libraries log stays off standard error; errors and everything else come."""

import logging
import os
import subprocess
import sys

import pytest

from mf_zoo import quiet

pytestmark = pytest.mark.once

NOISE = """\
WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1795615725.467544    7632 cudart_stub.cc:31] Could not find cuda drivers
E0000 00:00:1795615725.467544    7632 cuda_platform.cc:52] failed call to cuInit
2026-11-25 14:08:04.123456: I tensorflow/core/util/port.cc:153] oneDNN custom operations are on.
To enable the following instructions: AVX2 FMA, in other operations, rebuild TensorFlow with the \
appropriate compiler flags.
2026-11-25 14:08:04.123456789 [W:onnxruntime:Default, device_discovery.cc:164 GetGpuDevices] None
INFO: Created TensorFlow Lite XNNPACK delegate for CPU.
"""
KEPT = """\
F0000 00:00:1795615725.467544    7632 fatal.cc:1] Check failed
terminate called after throwing an instance of 'std::bad_alloc'
INFO: something else
"""


def test_log_lines_are_told_from_others():
    first, *noise = NOISE.splitlines(keepends=True)
    text = "".join([first, noise[0], KEPT, *noise[1:]])
    assert quiet.without_log_lines(text.encode()).decode() == KEPT
    assert quiet.without_log_lines(NOISE.encode()) == b""


def test_what_is_held_back_comes_afterwards(capfd):
    with quiet.held_back():
        os.write(2, (NOISE + KEPT).encode())
        print("printed", file=sys.stderr)
        assert os.fstat(2).st_size > 0  # a file, not the terminal
    assert capfd.readouterr().err in (KEPT + "printed\n", "printed\n" + KEPT)
    with pytest.raises(ImportError), quiet.held_back():
        os.write(2, NOISE.encode())
        raise ImportError("no such library")
    assert capfd.readouterr().err == NOISE


def _package(folder, name, *lines):
    (folder / f"{name}.py").write_text("\n".join(["import os", *lines]))


def test_noisy_packages_are_imported_quietly(tmp_path, monkeypatch, capfd):
    log = f"os.write(2, {NOISE.encode()!r})"
    # One that imports another; `__loader__` is that of the module, which may be asked for data.
    _package(tmp_path, "noisy_inner", log)
    _package(tmp_path, "noisy_outer", "import noisy_inner", log, f"os.write(2, {KEPT.encode()!r})")
    _package(tmp_path, "noisy_broken", log, "import a_package_that_is_missing")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(quiet, "_NOISY", {"noisy_inner", "noisy_outer", "noisy_broken"})
    finders = list(sys.meta_path)
    monkeypatch.setenv(quiet.LEVEL, "2")
    with quiet.libraries():
        assert os.environ[quiet.LEVEL] == "3"
        import noisy_outer

        assert noisy_outer.__loader__.get_source("noisy_outer").startswith("import os")
        assert noisy_outer.__spec__.loader is noisy_outer.__loader__
        assert capfd.readouterr().err == KEPT
        logging.getLogger("absl").warning("a warning of another library")
        assert capfd.readouterr().err == ""
        with pytest.raises(ImportError):
            import noisy_broken  # noqa: F401
        assert capfd.readouterr().err == NOISE
    assert (sys.meta_path, os.environ[quiet.LEVEL]) == (finders, "2")
    logging.getLogger("absl").warning("a warning outside")
    for name in ("noisy_inner", "noisy_outer"):
        sys.modules.pop(name)


def test_who_wants_to_see_everything_does(tmp_path):
    _package(tmp_path, "tensorflow", f"os.write(2, {NOISE.encode()!r})")
    code = "from mf_zoo import quiet\nwith quiet.libraries():\n    import tensorflow"
    for level, error in (("0", NOISE), ("1", "")):
        environment = {**os.environ, quiet.LEVEL: level, "PYTHONPATH": str(tmp_path)}
        process = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=environment
        )
        assert (process.returncode, process.stderr) == (0, error)
