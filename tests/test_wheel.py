"""A wheel, built from this tree and installed into an empty environment, without the tree and without a network."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from test_conversion import TRAP

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the files that git tracks, so that nothing left over in the tree gets in."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).exists():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source],
        check=True,
        capture_output=True,
    )
    [path] = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel and what it requires, nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    subprocess.run([*pip, "install", "--quiet", "--constraint", ROOT / "constraints.txt", wheel], check=True)
    return folder / "bin"


def test_the_wheel_carries_the_descriptors_the_embedded_model_and_the_page(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    mini = ("model.yml", "gpt2-mini/config.json", "held-out/held-out.txt", "held-out/LICENSE.txt")
    for name in ("gpt-2/model.yml", "gpt-2/README.md", *(f"gpt-2-mini/{name}" for name in mini)):
        assert f"omz_tools/model_configs/{name}" in names
    assert "omz_tools/py.typed" in names
    assert {f"omz_tools/page/static/{path.name}" for path in (ROOT / "omz_tools/page/static").iterdir()} <= names
    assert not [name for name in names if "tests/" in name or name.endswith("train.py")]
    embedded = sum(size for name, size in sizes.items() if "/gpt-2-mini/" in name)
    assert embedded < 5_000_000


def test_it_works_without_source_tree_and_network(bare: Path, tmp_path: Path) -> None:
    (tmp_path / "trap").mkdir()
    (tmp_path / "trap" / "sitecustomize.py").write_text(TRAP)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "OMZ_", "PYTHON"))}
    environment = kept | {"PYTHONPATH": str(tmp_path / "trap"), "TRAP_FILE": str(tmp_path / "log")}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [bare / words[0], *words[1:]], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )

    assert run("omz_downloader", "--print_all").stdout == "gpt-2\ngpt-2-mini\n"
    downloaded = run("omz_downloader", "--name", "gpt-2-mini")
    assert downloaded.returncode == 0, downloaded.stderr
    assert (tmp_path / "public" / "gpt-2-mini" / "gpt2-mini" / "model.safetensors").stat().st_size > 4_000_000
    assert not (tmp_path / "log").exists()

    # What the base install cannot do, it says.
    assert run("omz_converter", "--name", "gpt-2-mini", "--dry_run").returncode == 0
    converted = run("omz_converter", "--name", "gpt-2-mini")
    assert converted.returncode == 1
    assert "pip install 'omz_tools[pytorch]'" in converted.stderr
    assert "Traceback" not in converted.stderr
