"""A repository of the Hugging Face Hub at one commit: which files it has, their sizes and digests."""

import hashlib
import os
import re
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from omz_tools import __version__
from omz_tools.descriptors.descriptor import HuggingFace
from omz_tools.download.sources import offline_by_environment, open_source
from omz_tools.errors import IntegrityError, SourceError, UnreachableError
from omz_tools.network.transport import FIRST_ANSWER_SECONDS, READ_SECONDS, Transport
from omz_tools.progress.showing import printable, shown
from omz_tools.system.files import RelativeName
from omz_tools.system.libraries import reason

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

T = TypeVar("T")

_ADVICE = {
    "GatedRepoError": "Accept the model's terms on its page there, and set HF_TOKEN to a token of that account.",
    "RepositoryNotFoundError": "There is no such repository, or it is private: check its name, or set HF_TOKEN.",
    "RevisionNotFoundError": "Check --revision: it is a branch, a tag or a commit of the repository.",
}


@dataclass(frozen=True)
class Snapshot:
    """A repository at one commit, and its files by their paths."""

    repo: str
    commit: str
    files: "dict[str, RepoFile]"

    @property
    def contents(self) -> str:
        """A sentence that lists the files."""
        names = sorted(self.files)
        more = f" and {len(names) - 50} more" if len(names) > 50 else ""
        return f"There are: {', '.join(names[:50])}{more}."

    def size_and_digest(self, file: str, transport: Transport) -> tuple[int, str]:
        """Bytes and sha256 of a file. The Hub publishes the sha256 of large files alone; others are downloaded for it.

        Raises:
            SourceError, UnreachableError: see `Transport.get`.
            IntegrityError: the bytes are not those of the git blob.
        """
        listed = self.files[file]
        if listed.lfs:
            return listed.size, listed.lfs.sha256
        sha256, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % listed.size, usedforsecurity=False)
        received = 0
        with open_source(HuggingFace(self.repo, self.commit, RelativeName(file)), Path(), transport) as body:
            for chunk in body:
                sha256.update(chunk)
                blob.update(chunk)
                received += len(chunk)
                if received > listed.size:
                    break
        if blob.hexdigest() != listed.blob_id:
            raise IntegrityError(
                f"{body.url} does not send the {listed.size:,} bytes of git blob {listed.blob_id} that the Hub lists",
                hint="Nothing was written. Try again; if it stays so, check the proxy or mirror on the way.",
            )
        return listed.size, sha256.hexdigest()


def look_up(repo: str, revision: str) -> Snapshot:
    """What the Hub has of a repository at a branch, tag or commit.

    Raises:
        SourceError: there is no such repository or revision, or the token may not read it.
        UnreachableError: the Hub does not answer, or HF_HUB_OFFLINE is set.
    """
    _prepare()
    if offline_by_environment():
        raise UnreachableError(f"{repo} is not looked up: HF_HUB_OFFLINE is set", hint="Unset it to pin files.")
    from huggingface_hub import HfApi, constants, get_token
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.hf_api import RepoFile

    token = get_token()
    if token and not re.fullmatch(r"[\x21-\x7e]+", token):  # the error of the library below would show it
        raise SourceError("the token holds a character that cannot be sent", hint="Check HF_TOKEN.")
    api = HfApi(token=token or False, library_name="omz_tools", library_version=__version__)
    place = f"{shown(constants.ENDPOINT)}/{repo} at {revision}"
    try:
        commit = str(_within(FIRST_ANSWER_SECONDS, lambda: api.model_info(repo, revision=revision).sha))
        tree = _within(READ_SECONDS, lambda: list(api.list_repo_tree(repo, revision=commit, recursive=True)))
    except HfHubHTTPError as error:
        code = error.response.headers.get("X-Error-Code", "")
        raise SourceError(
            f"{place}: the Hub answered {error.response.status_code} {code if code.isalnum() else ''}".strip(),
            hint=_ADVICE.get(type(error).__name__, "Check HF_ENDPOINT if it is set, or try again later."),
        ) from error
    except Exception as error:
        raise UnreachableError(
            f"{place} cannot be looked up: {printable(reason(error))}",
            hint="Check the name, the network, the proxy (HTTPS_PROXY) and the certificates (REQUESTS_CA_BUNDLE), or "
            "name a mirror of the Hub with HF_ENDPOINT.",
        ) from error
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise SourceError(f"{place}: the Hub names the commit {printable(commit)!r}, which is none")
    # A name that a terminal cannot show may stand in no descriptor.
    files = {file.path: file for file in tree if isinstance(file, RepoFile) and file.path.isprintable()}
    return Snapshot(repo, commit, files)


def _prepare() -> None:
    """Before the Hub's library is imported: no telemetry, and the certificates that `Transport` takes."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if bundle := os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("SSL_CERT_FILE"):
        # Each version of the library reads one of these, and none of them a folder from SSL_CERT_FILE.
        os.environ.pop("SSL_CERT_FILE", None)
        os.environ |= {
            "REQUESTS_CA_BUNDLE": bundle,
            "SSL_CERT_DIR" if Path(bundle).is_dir() else "SSL_CERT_FILE": bundle,
        }


def _within(seconds: float, call: Callable[[], T]) -> T:
    """The result of `call`, waited for that long at most: the Hub's library waits for ever, or tries for minutes."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 -- raised again in the thread that waits
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        return future.result(seconds)
    except TimeoutError:
        raise TimeoutError(f"no answer within {seconds:.0f} seconds") from None
