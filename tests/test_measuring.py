"""The instrument of the benchmarks: it must count what a command and its children do and hold."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import generating
import measuring

pytestmark = pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs Linux's /proc")

HOLD = "import time; held = bytearray(b'1') * 100_000_000; time.sleep(0.5)"
IN_A_CHILD = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLD!r}], check=True)"


@pytest.mark.parametrize("code", [HOLD, IN_A_CHILD], ids=["itself", "in a child"])
def test_memory_of_all_processes_counts(tmp_path: Path, code: str) -> None:
    figure = measuring.measure([sys.executable, "-c", code], tmp_path)
    assert 100 < figure.anonymous < 140
    assert 100 < figure.resident < 160


def test_processor_time_of_children_counts(tmp_path: Path) -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'sum(range(20_000_000))'], check=True)"
    figure = measuring.measure([sys.executable, "-c", code], tmp_path)
    assert figure.cpu > 0.1
    assert figure.seconds > 0


def test_a_command_that_fails_ends_the_benchmark_with_its_words(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no such thing"):
        measuring.measure([sys.executable, "-c", "raise SystemExit('no such thing')"], tmp_path)


def test_the_ratio_is_that_of_each_round() -> None:
    # The machine was three times as slow in the second round and as fast as ever in the third.
    assert measuring.ratio([1.0, 3.0, 1.0], [2.0, 6.0, 2.5]) == 0.5


def test_settings_of_the_caller_do_not_reach_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMZ_CACHE_DIR", "elsewhere")
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    code = "import os; assert not {'OMZ_CACHE_DIR', 'PYTHONPATH'} & set(os.environ); assert os.environ['MINE'] == '1'"
    measuring.measure([sys.executable, "-c", code], tmp_path, {"PYTHONPATH": None, "MINE": "1"})


def test_what_a_command_writes_is_timed_as_it_comes() -> None:
    code = "import os, time; os.write(1, b'one\\n'); time.sleep(1); os.write(1, b'two ones\\nthree\\n')"
    output = generating.Output([sys.executable, "-c", code])
    [one, two], [three] = output.lines("one"), output.lines("three")
    assert one == output.at(1) == output.at(4) < one + 0.5 < two == output.at(5) == three
    with pytest.raises(SystemExit, match="the reason"):
        generating.Output([sys.executable, "-c", "print('the reason'); raise SystemExit(1)"])
