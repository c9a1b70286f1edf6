"""What an answer of a server means, or that there is none."""

import email.utils
import re
import time

import urllib3

from omz_tools.errors import SourceError, UnreachableError
from omz_tools.progress.showing import printable

_TRANSIENT = (408, 429, 500, 502, 503, 504)


class TransientError(SourceError):
    """A fault that may pass: worth another try, after `retry_after` seconds if the server named a time."""

    def __init__(self, what: str, *, hint: str = "", where: tuple[str, ...] = (), retry_after: float = 0.0) -> None:
        super().__init__(what, hint=hint, where=where)
        self.retry_after = retry_after


class RangeError(SourceError):
    """A server cannot be asked for part of a file: it refuses, or sends another part than asked for."""


def content_range(value: str) -> tuple[int, int, int | None] | None:
    """First offset, offset behind the last byte, and total size (None for "*") that a Content-Range means, if any."""
    match = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", value.strip(), re.ASCII)
    if not match:
        return None
    first, end = int(match[1]), int(match[2]) + 1
    total = None if match[3] == "*" else int(match[3])
    return (first, end, total) if first < end and (total is None or end <= total) else None


def length(response: urllib3.HTTPResponse) -> int | None:
    """The declared number of bytes of a body, if it is declared well."""
    declared = response.headers.get("Content-Length", "")
    return int(declared) if declared.isdecimal() and declared.isascii() and len(declared) < 20 else None


def refusal(url: str, status: int, headers: urllib3.HTTPHeaderDict) -> SourceError:
    """The error for a status of a URL (as it is shown), neither success nor redirect: transient if it may pass."""
    code = headers.get("X-Error-Code", "")
    text = f"{url} answered {status}" + (f" {code}" if code.isalnum() else "")
    if status in _TRANSIENT:
        return TransientError(text, hint="Try again later.", retry_after=retry_after(headers.get("Retry-After", "")))
    if status == 403 or code == "GatedRepo":
        hint = "Accept the model's terms on its page there, and set HF_TOKEN to a token of that account."
    elif status == 407:
        hint = "Put name and password for the proxy into its address: HTTP_PROXY=http://NAME:PASSWORD@HOST:PORT."
    elif status == 401:
        hint = "Set HF_TOKEN to a token that may read this repository, or check the name of the repository."
    elif code == "RepoNotFound":
        hint = "There is no such repository (or it is private: set HF_TOKEN). Check `repo` in the descriptor."
    elif code == "RevisionNotFound":
        hint = "The repository has no such revision. Check `revision` in the descriptor."
    else:
        hint = "Check the source in the descriptor, and HF_ENDPOINT if it is set."
    return SourceError(text, hint=hint)


def retry_after(value: str) -> float:
    """Seconds to wait that a Retry-After header means, in either of its forms; 0 when it means nothing."""
    value = value.strip()
    if value.isascii() and value.isdecimal():
        return float(value[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return 0.0


def unreachable(url: str, why: str) -> UnreachableError:
    """The error for a host that does not answer."""
    hint = "Check the network and the proxy (HTTPS_PROXY), or name a mirror of the Hub with HF_ENDPOINT."
    if "CERTIFICATE_VERIFY_FAILED" in why:
        hint = "If its certificate comes from an authority of your own, name that with REQUESTS_CA_BUNDLE."
    return UnreachableError(f"{url} cannot be reached: {why}", hint=hint)


def reason(error: BaseException) -> str:
    """The innermost reason of a urllib3 error, without the pool and object names around it; may be printed."""
    while inner := next((e for e in _nested(error) if isinstance(e, BaseException)), None):
        error = inner
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).partition(": ")[2] if "object at 0x" in str(error) else str(error)
    return printable(text) or type(error).__name__


def _nested(error: BaseException) -> tuple[object, ...]:
    """The places where urllib3 and Python keep the error that led to another one."""
    return getattr(error, "reason", None), error.__cause__, *error.args[-1:]
