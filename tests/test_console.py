"""The commands from their first moment on."""

import configparser
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from crash import wait_until

SETTINGS = configparser.ConfigParser(interpolation=None)
SETTINGS.read(Path(__file__).parents[1] / "setup.cfg", encoding="utf-8")
SCRIPTS = dict(line.split(" = ") for line in SETTINGS["options.entry_points"]["console_scripts"].split("\n") if line)
# A library that all commands load, and that takes its time.
SLOW = """
import pathlib, time
pathlib.Path(__file__).with_name("loading").touch()
try:
    time.sleep(60)
except BaseException:
    pass
"""


def words(script: str) -> list[str]:
    """What a console script is."""
    module, function = SCRIPTS[script].split(":")
    return [sys.executable, "-c", f"import sys\nfrom {module} import {function} as main\nsys.exit(main())"]


def environment(folder: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, sys.path)])}


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize(
    ("number", "status", "says"), [(signal.SIGINT, 130, "Interrupted.\n"), (signal.SIGTERM, 143, "")]
)
@pytest.mark.parametrize("script", SCRIPTS)
def test_a_signal_while_modules_are_loaded_ends_a_command_cleanly(
    tmp_path: Path, script: str, number: signal.Signals, status: int, says: str
) -> None:
    (tmp_path / "yaml").mkdir()
    (tmp_path / "yaml" / "__init__.py").write_text(SLOW)
    process = subprocess.Popen(words(script), env=environment(tmp_path), stderr=subprocess.PIPE, text=True)
    try:
        wait_until((tmp_path / "yaml" / "loading").exists)
        process.send_signal(number)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, err) == (status, says)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_command_that_has_begun_takes_its_arguments(tmp_path: Path, script: str) -> None:
    done = subprocess.run([*words(script), "--version"], env=environment(tmp_path), capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (
        subprocess.run(
            [*words(script), "--nothing"], env=environment(tmp_path), capture_output=True, check=False
        ).returncode
        == 2
    )
