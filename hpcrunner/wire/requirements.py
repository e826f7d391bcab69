"""From the packages that the client lists to a pip requirements file.

The list is the `pip freeze` of the submitter's environment: mostly `name==version`, with whatever else pip prints.
Nothing but a requirement may come through: a line of such a file can also hold options and variables, and a
path in it would mean a file of ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from hpcrunner.errors import MessageError

_NOISE = frozenset({"pip", "setuptools", "wheel", "distribute", "pkg-resources"})
_STUDIOML = frozenset({"studioml", "studioml-cs"})
_PACKAGE = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_EXTRAS = r"(?:\s*\[[A-Za-z0-9,._ -]*\])?"
_VERSION = r"(?:~=|===?|!=|<=?|>=?)\s*[A-Za-z0-9.*+!_-]+"
_MARKER = r"(?:\s*;\s*[A-Za-z0-9_.'\"()<>=!~, -]+)?"
_PLAIN = re.compile(rf"({_PACKAGE})({_EXTRAS})\s*((?:{_VERSION}(?:\s*,\s*{_VERSION})*)?)({_MARKER})")
_DIRECT = re.compile(rf"({_PACKAGE})({_EXTRAS})\s*@\s*(\S+)({_MARKER})")
_GIT = re.compile(r"git\+https://[A-Za-z0-9._~/:%+-]+(?:@[A-Za-z0-9._/+-]+)?(#[A-Za-z0-9._=&\[\],%/-]*)?")
_WEB = re.compile(r"https://[A-Za-z0-9._~/:%+?=&-]+(#[A-Za-z0-9._=&%-]*)?")
_FILE = re.compile(rf"({_PACKAGE}?)-(\d[A-Za-z0-9.+!]*?)(?:(?:-[A-Za-z0-9_.]+){{3}})?\.(?:whl|tar\.gz|zip)")
"""Name and version in the file name of a wheel or source distribution."""
_IMPORTS_STUDIO = re.compile(r"^\s*(?:import|from)\s+studio(?=[\s.,]|$)", re.MULTILINE)


@dataclass(frozen=True)
class Requirements:
    lines: tuple[str, ...]
    """For a requirements file, in an order that doesn't depend on the message's."""
    needs_git: bool
    warnings: tuple[str, ...]


def requirements(pythonenv: Sequence[str], pip: Sequence[str], *, keep_studioml: bool) -> Requirements:
    """Entries of `pip` (config.pip) replace those of the same package in `pythonenv`.

    Raises MessageError naming every entry that can't be installed here, with the remedy.
    """
    chosen: dict[str, str] = {}
    warnings: list[str] = []
    problems: list[str] = []
    for entry in (*pythonenv, *pip):
        text = entry.strip()
        if not text or text.startswith("#"):
            continue
        try:
            name, line = _line(text, warnings)
        except ValueError as error:
            problems.append(f"package {ascii(text)[:200]}: {error}")
            continue
        normal = re.sub(r"[-_.]+", "-", name).lower()
        if normal in _NOISE or (normal in _STUDIOML and not keep_studioml):
            continue
        chosen[normal] = line
    if problems:
        raise MessageError("; ".join(problems))
    lines = tuple(chosen[name] for name in sorted(chosen))
    return Requirements(lines, any("git+" in line for line in lines), tuple(warnings))


def needs_studioml(filename: str | None, sources: Iterable[str]) -> bool:
    """Whether a program uses the client's library itself, told by its source texts."""
    if filename is not None and filename.rpartition("/")[2] == "completion_service_client.py":
        return True
    return any("studio" in text and _IMPORTS_STUDIO.search(text) for text in sources)


def _line(text: str, warnings: list[str]) -> tuple[str, str]:
    """(name, line of the requirements file). Raises ValueError with the reason."""
    # `$` and backslashes mean something to pip in such a file, and control characters to whatever reads it.
    if not text.isprintable() or re.search(r"[$\\`]| #", text):
        raise ValueError("holds characters that no requirement has")
    editable = re.fullmatch(r"(?:-e|--editable)[ =]\s*(.+)", text)
    if editable:
        text = editable[1]
    elif text.startswith("-"):
        raise ValueError("is an option of pip; only packages can be listed (options are the site's: pip_args)")
    if match := _DIRECT.fullmatch(text):
        return _direct(match[1], match[2] or "", match[3], match[4] or "", warnings)
    if text.startswith(("git+", "https:", "http:", "file:", "hg+", "svn+", "bzr+", "/", ".", "~")) or editable:
        return _url(text)
    if match := _PLAIN.fullmatch(text):
        version = re.sub(r"\s+", "", match[3])
        return match[1], match[1] + re.sub(r"\s+", "", match[2] or "") + version + _marker(match[4])
    raise ValueError("is no requirement; write it like name==1.2.3")


def _direct(name: str, extras: str, url: str, marker: str, warnings: list[str]) -> tuple[str, str]:
    if url.startswith("file:"):
        # conda's packages name the folder they were built in; a wheel's name at least says the version.
        file = unquote(urlsplit(url).path).rpartition("/")[2]
        if (match := _FILE.fullmatch(file)) and match[2]:
            return name, f"{name}{extras}=={match[2]}"
        warnings.append(f"package {name} comes from a folder of the submitter's machine ({url[:100]}); the newest "
                        "release is installed instead")
        return name, f"{name}{extras}"
    _, checked = _url(url)
    return name, f"{name}{extras} @ {checked}{_marker(marker, ' ')}"


def _url(url: str) -> tuple[str, str]:
    if url.startswith(("file:", "git+file:", "/", ".", "~")) or "://" not in url:
        raise ValueError("exists only on the submitter's machine; publish the package, or put its code into the "
                         "workspace")
    if not url.startswith(("git+https://", "https://")):
        raise ValueError("can't be fetched here; only https:// and git+https:// can")
    host = urlsplit(url.removeprefix("git+")).netloc
    if "@" in host:
        raise ValueError("has a user or password in it, which would end up in an image")
    if "@-" in url or not (_GIT if url.startswith("git+") else _WEB).fullmatch(url):
        raise ValueError("is no address of a package")
    egg = re.search(rf"[#&]egg=({_PACKAGE})", url)
    name = egg[1] if egg else url.partition("#")[0]
    # `#egg=` alone is no longer taken by newer pips; `name @ url` is taken by all since 2018.
    return (name, f"{name} @ {url.partition('#')[0]}{_subdirectory(url)}") if egg else (name, url)


def _subdirectory(url: str) -> str:
    match = re.search(r"[#&](subdirectory=[A-Za-z0-9._/-]+)", url)
    return f"#{match[1]}" if match else ""


def _marker(text: str | None, before: str = "") -> str:
    marker = (text or "").strip().lstrip(";").strip()
    return f"{before}; {marker}" if marker else ""
