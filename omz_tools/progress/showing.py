"""URLs, and what servers say, as they may be printed: without secrets, and without what a terminal acts upon."""

import re

# Of what a server says; there may be any amount of it.
_LONGEST = 400


def shown(url: str) -> str:
    """A URL as it may be printed: without user, password, query and fragment, which may be secrets."""
    return _escaped(_bare(url))


def printable(text: str) -> str:
    """What someone else says, on one line of bounded length; URLs in it are shown without their secrets."""
    return _escaped(re.sub(r"\w+://[^\s'\"<>]+", lambda match: _bare(match[0]), text))


def _bare(url: str) -> str:
    import urllib3  # here, for it takes as long to load as all else that a command with nothing to do needs

    try:
        parts = urllib3.util.parse_url(url)
        usable = parts.scheme in ("http", "https") and bool(parts.host)
    except urllib3.exceptions.LocationParseError:
        usable = False
    if "@" in url and not usable:
        # Nobody can tell where a password begins and ends there.
        return re.sub(r"^(\w+://)?.*", r"\1…", url, count=1, flags=re.DOTALL)
    # As the library that connects reads it: to the last @ of the authority, which a backslash ends as well.
    return re.sub(r"^(\w+://)[^/\\]*@", r"\1", re.split(r"[?#]", url, maxsplit=1)[0])


def _escaped(text: str) -> str:
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} …"
