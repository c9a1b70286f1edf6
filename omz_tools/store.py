"""The cache: files named by their digest, shared by any number of runs."""

import hashlib
import shutil
import stat
from pathlib import Path

from omz_tools.descriptor import Digest
from omz_tools.errors import DiskError
from omz_tools.files import CHUNK, disk_errors, replacing, temporary_beside

# Part of the path: a later layout lives beside this one, and neither reads the other's.
FORMAT = "1"


class Store:
    """A folder of verified files, `<folder>/<format>/<algorithm>/<first two hex digits>/<hex digest>`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, digest: Digest) -> Path:
        """Where the file with this digest lies, if the store has it."""
        return self.folder / FORMAT / digest.algorithm / digest.value[:2] / digest.value

    def take(self, digest: Digest, size: int, target: Path) -> bool:
        """Copy a file out, verified on the way; True if `target` now holds the right bytes.

        What leaves the store is a real file: ONNX and OpenVINO refuse weights behind links. An entry that is not what
        its name says is set aside under a name of its own, and counts as absent.

        Raises:
            DiskError: `target` cannot be written.
        """
        blob = self.path(digest)
        hasher = hashlib.new(digest.algorithm)
        try:
            status = blob.lstat()
            if not stat.S_ISREG(status.st_mode) or status.st_size != size:
                self._set_aside(blob)
                return False
            source = blob.open("rb")
        except (FileNotFoundError, NotADirectoryError):
            return False  # not there, or another run has just set it aside
        except OSError as error:
            raise DiskError(f"the cache entry {blob} cannot be read: {error.strerror}") from error
        with source, disk_errors("Copying from the cache to", target), target.open("wb") as copy:
            while chunk := source.read(CHUNK):
                hasher.update(chunk)
                copy.write(chunk)
        if hasher.hexdigest() == digest.value:
            return True
        self._set_aside(blob)
        return False

    def put(self, digest: Digest, verified: Path) -> None:
        """Add a file whose bytes have just been verified.

        Raises:
            DiskError: the cache is full or read-only.
        """
        blob = self.path(digest)
        if blob.exists():
            return
        with replacing(blob) as temporary, disk_errors("Writing to the cache", blob):
            shutil.copyfile(verified, temporary)
            temporary.chmod(0o444)

    def _set_aside(self, blob: Path) -> None:
        try:
            blob.replace(temporary_beside(blob).with_suffix(".damaged"))
        except FileNotFoundError:
            pass  # another run found it first
        except OSError as error:
            raise DiskError(
                f"the cache entry {blob} is damaged and cannot be set aside: {error.strerror}",
                hint="Remove it, or give another --cache_dir.",
            ) from error
