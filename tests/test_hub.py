"""The stand-in Hub is a fair judge: the real client of the Hugging Face Hub downloads from it."""

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import checkpoints
import pytest
from hub import LARGE, Hub

Python = Callable[..., subprocess.CompletedProcess[str]]

SNAPSHOT = "import sys, huggingface_hub as h; print(h.snapshot_download(sys.argv[1], revision=sys.argv[2]))"
ONE_FILE = "import sys, huggingface_hub as h; h.hf_hub_download(sys.argv[1], sys.argv[3], revision=sys.argv[2])"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """The tiny repository, one file of which is large enough to be sent to the second host."""
    folder = checkpoints.write_repository(tmp_path / "repository", checkpoints.TINY, seed=7)
    (folder / "merges.txt").write_bytes(random.Random(3).randbytes(LARGE + 1))
    with Hub(folder) as hub:
        yield hub


@pytest.fixture
def client(tmp_path: Path, hub: Hub) -> Python:
    """Run a line of Python with the real client, whose Hub is the stand-in."""

    def client(code: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        kept = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("HF_", "HUGGING")) and not k.lower().endswith("proxy")
        }
        hugging_face = {
            "HF_ENDPOINT": hub.endpoint,
            "HF_HOME": str(tmp_path / "hf-home"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        }
        return subprocess.run(
            [sys.executable, "-c", code, *words],
            env=kept | hugging_face | environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return client


@pytest.mark.parametrize("revision", ["607a30d783dfa663caf39e06633721c8d4cfcd7e", "main"])
def test_the_real_client_downloads_the_same_bytes(client: Python, hub: Hub, revision: str) -> None:
    done = client(SNAPSHOT, hub.repo, revision)
    assert done.returncode == 0, done.stderr
    snapshot = Path(done.stdout.strip())
    assert snapshot.name == hub.revision
    assert {p.name: p.read_bytes() for p in snapshot.iterdir()} == {
        name: file.path.read_bytes() for name, file in hub.files.items()
    }


def test_the_real_client_is_led_to_the_second_host_for_the_large_file_alone(client: Python, hub: Hub) -> None:
    done = client(SNAPSHOT, hub.repo, hub.revision)
    assert done.returncode == 0, done.stderr
    assert {r for r in hub.requests if "/cdn/" in r} == {"GET /cdn/merges.txt"}
    assert any(r.startswith("GET /api/resolve-cache/") and r.endswith("/config.json") for r in hub.requests)


@pytest.mark.parametrize(
    ("repo", "revision", "file", "error"),
    [
        ("openai-community/gpt2", "main", "absent.json", "EntryNotFoundError"),
        ("openai-community/gpt2", "f" * 40, "config.json", "RevisionNotFoundError"),
        ("nobody/nothing", "main", "config.json", "RepositoryNotFoundError"),
    ],
)
def test_the_real_client_understands_a_refusal(client: Python, repo: str, revision: str, file: str, error: str) -> None:
    done = client(ONE_FILE, repo, revision, file)
    assert done.returncode == 1
    assert error in done.stderr.splitlines()[-1] or f"{error}:" in done.stderr


def test_the_real_client_is_refused_without_the_token_and_served_with_it(client: Python, hub: Hub) -> None:
    hub.token = "hf_of_the_test"
    refused = client(SNAPSHOT, hub.repo, hub.revision)
    assert refused.returncode == 1
    assert "GatedRepoError" in refused.stderr
    served = client(SNAPSHOT, hub.repo, hub.revision, HF_TOKEN=hub.token)
    assert served.returncode == 0, served.stderr
