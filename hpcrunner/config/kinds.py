"""Kinds of options: how what somebody wrote becomes a value, or a problem that says where and what would be right.

Queue backends declare options of their own with these kinds, so this module knows nothing of files or YAML.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

from hpcrunner.errors import ConfigError
from hpcrunner.units import format_duration, format_size, parse_duration, parse_size

T = TypeVar("T")
Plain: TypeAlias = "str | list[Plain] | dict[str, Plain]"
"""A value as it would be written in a file."""

_VARIABLE = re.compile(r"\$(?:\$|([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}|)")
_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


@dataclass(frozen=True)
class Origin:
    """Who wrote something: a file, a variable of the environment, an option of the command line."""

    name: str
    folder: Path
    """What relative paths are relative to."""
    environ: Mapping[str, str]
    """Values for the variables in paths."""


@dataclass(frozen=True)
class Given:
    """What somebody wrote, as text: a scalar, a list or a mapping. None stands for "the default"."""

    content: str | list[Given] | dict[str, Given] | None
    origin: Origin
    line: int = 0
    """From 1; 0 outside of files."""
    column: int = 0
    key_at: str = ""
    """`line:column` of its key, in a mapping."""

    @property
    def where(self) -> str:
        return f"{self.origin.name}:{self.line}:{self.column}" if self.line else self.origin.name

    @property
    def source(self) -> str:
        return f"{self.origin.name}:{self.line}" if self.line else self.origin.name

    def problem(self, key: str, text: str) -> ConfigError:
        # The name of a variable or of an option on the command line says which key it is.
        return ConfigError(f"{self.where}: {key}: {text}" if self.line else f"{self.where}: {text}")


class Problems(list[str]):
    """Collects the problems of ConfigErrors that are raised in its `with` blocks, and goes on."""

    def __enter__(self) -> Problems:
        return self

    def __exit__(self, _: object, error: object, __: object) -> bool:
        if isinstance(error, ConfigError):
            self += error.problems
            return True
        return False

    def check(self) -> None:
        """Raises all of them as one ConfigError, if there are any."""
        if self:
            raise ConfigError(list(self))


class Kind(Generic[T]):
    """How values of one kind are written and read."""

    allowed: str
    """What may be written, for people."""
    is_scalar = False
    """A single text, so it can also stand on the command line and in the environment."""
    metavar = "TEXT"

    def read(self, given: Given, key: str) -> T:
        """The value of `given`, whose content isn't None. Raises ConfigError with every problem in it."""
        raise NotImplementedError

    def plain(self, value: T) -> Plain:
        """The opposite: what to write in a file to get this value, `***` for a secret."""
        raise NotImplementedError

    def secrets(self, given: Given) -> Iterator[Given]:
        """The secrets in it."""
        return iter(())

    def wrong(self, given: Given, key: str, reason: str = "") -> ConfigError:
        held = "a list" if isinstance(given.content, list) else "a mapping"
        if isinstance(given.content, str):
            held = "something else" if any(self.secrets(given)) else _shortened(given.content)
        return given.problem(key, f"holds {held}{reason and f' ({reason})'}; allowed: {self.allowed}")


@dataclass(frozen=True)
class Option:
    """One key of the site config, or of an entry of `queues`."""

    kind: Kind[Any]
    default: str | Sequence[Any] | Mapping[str, Any] | None
    """As it would be written in a file; None if the option is simply not set."""
    doc: str
    unset: str = "not set"
    """What None means, for people."""
    heading: str = ""
    """Title of the group of options that begins with this one."""
    is_required: bool = False

    def value(self, environ: Mapping[str, str] = os.environ) -> Any:
        """The default as a value."""
        if isinstance(self.default, str):
            return self.kind.read(Given(self.default, Origin("default", Path(), environ)), "")
        return dict(self.default) if isinstance(self.default, Mapping) else self.default


def read_options(options: Mapping[str, Option], table: Given, prefix: str = "") -> dict[str, Any]:
    """The value of every option, given in the mapping `table` or default. Raises ConfigError with every problem."""
    problems, values = Problems(), {}
    entries = table.content if isinstance(table.content, dict) else {}
    for key, given in entries.items():
        if key not in options:
            problems.append(f"{given.origin.name}:{given.key_at}: {prefix}{key}: unknown; {suggest(key, options)}")
    for name, option in options.items():
        entry = entries.get(name)
        with problems:
            if entry is not None and entry.content is not None:
                values[name] = option.kind.read(entry, prefix + name)
            elif option.is_required:
                raise table.problem(prefix + name, f"is missing; allowed: {option.kind.allowed}")
            else:
                values[name] = option.value(table.origin.environ)
    problems.check()
    return values


def nearest(word: str, known: Iterable[str]) -> str | None:
    """What the writer of an unknown word may have meant."""
    from difflib import get_close_matches

    return next(iter(get_close_matches(word.lower().replace("-", "_"), list(known), 1)), None)


def suggest(word: str, known: Collection[str]) -> str:
    """The end of a message about an unknown word."""
    if near := nearest(word, known):
        return f"did you mean {near}?"
    return f"known: {', '.join(known)}" if len(known) <= 12 else "docs/site-config.md lists all that are known"


class Scalar(Kind[T]):
    """A single text. `parse` raises ValueError, with a reason if `allowed` alone would not explain it."""

    is_scalar = True

    def __init__(self, allowed: str, metavar: str, parse: Callable[[str, Origin], T],
                 write: Callable[[T], str] = str, *, secret: bool = False) -> None:
        self.allowed, self.metavar = allowed, metavar
        self._parse, self._write, self._secret = parse, write, secret

    def read(self, given: Given, key: str) -> T:
        if not isinstance(given.content, str):
            raise self.wrong(given, key)
        try:
            return self._parse(given.content, given.origin)
        except ValueError as error:
            raise self.wrong(given, key, str(error)) from None

    def plain(self, value: T) -> str:
        return "***" if self._secret else self._write(value)

    def secrets(self, given: Given) -> Iterator[Given]:
        return iter((given,) if self._secret else ())


class ListOf(Kind[tuple[T, ...]]):
    """A list, whose values all are of one kind."""

    def __init__(self, item: Kind[T]) -> None:
        self.item = item
        self.allowed = f"a list, of: {item.allowed}"

    def read(self, given: Given, key: str) -> tuple[T, ...]:
        if not isinstance(given.content, list):
            raise self.wrong(given, key)
        problems, values = Problems(), []
        for index, item in enumerate(given.content):
            with problems:
                if item.content is None:
                    raise item.problem(f"{key}[{index}]", f"holds nothing; allowed: {self.item.allowed}")
                values.append(self.item.read(item, f"{key}[{index}]"))
        problems.check()
        return tuple(values)

    def plain(self, value: tuple[T, ...]) -> Plain:
        return [self.item.plain(item) for item in value]

    def secrets(self, given: Given) -> Iterator[Given]:
        for item in given.content if isinstance(given.content, list) else ():
            yield from self.item.secrets(item)


class MappingOf(Kind[Mapping[str, T]]):
    """A mapping, whose keys all match a pattern and whose values are of one kind. An entry without a value is
    left out, so that a file can take away what it would inherit."""

    def __init__(self, keys: str, pattern: str, item: Kind[T]) -> None:
        self.item = item
        self._keys, self._pattern = keys, pattern
        self.allowed = f"a mapping, from {keys} to: {item.allowed}"

    def read(self, given: Given, key: str) -> Mapping[str, T]:
        if not isinstance(given.content, dict):
            raise self.wrong(given, key)
        problems, values = Problems(), {}
        for name, item in given.content.items():
            with problems:
                if not re.fullmatch(self._pattern, name):
                    raise ConfigError(f"{item.origin.name}:{item.key_at}: {key}: has the key {name!r}; "
                                      f"allowed: {self._keys}")
                if item.content is not None:
                    values[name] = self.item.read(item, f"{key}.{name}")
        problems.check()
        return values

    def plain(self, value: Mapping[str, T]) -> Plain:
        return {name: self.item.plain(item) for name, item in value.items()}

    def secrets(self, given: Given) -> Iterator[Given]:
        for item in given.content.values() if isinstance(given.content, dict) else ():
            yield from self.item.secrets(item)


def text(pattern: str = "", allowed: str = "text", *, secret: bool = False) -> Scalar[str]:
    """Any text, or what matches `pattern` in full. A secret one is never shown."""
    def parse(given: str, origin: Origin) -> str:
        if pattern and not re.fullmatch(pattern, given):
            raise ValueError
        return given

    return Scalar(allowed, "TEXT", parse, secret=secret)


def choice(*words: str) -> Scalar[str]:
    def parse(given: str, origin: Origin) -> str:
        if given not in words:
            raise ValueError
        return given

    return Scalar(", ".join(words[:-1]) + f" or {words[-1]}", "|".join(words), parse)


def boolean() -> Scalar[bool]:
    def parse(given: str, origin: Origin) -> bool:
        if given.lower() not in _WORDS:
            raise ValueError
        return _WORDS[given.lower()]

    return Scalar("true or false", "true|false", parse, lambda value: "true" if value else "false")


def integer(minimum: int = 0) -> Scalar[int]:
    def parse(given: str, origin: Origin) -> int:
        # Not int() alone, which takes "1_000" and digits of other scripts.
        if not re.fullmatch(r"[0-9]{1,18}", given) or int(given) < minimum:
            raise ValueError
        return int(given)

    return Scalar(f"a whole number, {minimum} or more", "N", parse)


def size() -> Scalar[int]:
    """Bytes."""
    def write(value: int) -> str:
        short = format_size(value)
        return short if parse_size(short) == value else str(value)

    return Scalar("a size such as 512MiB or 2GB", "SIZE", lambda given, _: parse_size(given), write)


def duration(minimum: float = 0) -> Scalar[float]:
    """Seconds."""
    def parse(given: str, origin: Origin) -> float:
        seconds = parse_duration(given)
        if seconds < minimum:
            raise ValueError(f"less than {format_duration(minimum)}")
        return seconds

    def write(value: float) -> str:
        short = format_duration(value)
        return short if parse_duration(short) == value else f"{value:f}s"

    return Scalar("a duration such as 90s, 1h30m or 2d", "TIME", parse, write)


def regex() -> Scalar[re.Pattern[str]]:
    """A pattern as in Python's `re`, to be used with `search`."""
    def parse(given: str, origin: Origin) -> re.Pattern[str]:
        try:
            return re.compile(given)
        except re.error as error:
            raise ValueError(str(error)) from None

    return Scalar("a regular expression", "REGEX", parse, lambda value: value.pattern)


def path() -> Scalar[Path]:
    """Absolute, when it is read: see `resolve`."""
    return Scalar("a path", "PATH", resolve, _escaped)


def program() -> Scalar[str]:
    """The name of a program on PATH, or a path, which has a slash."""
    def parse(given: str, origin: Origin) -> str:
        if not given:
            raise ValueError("empty")
        return str(resolve(given, origin)) if re.search(r"[/~$]", given) else given

    return Scalar("a path, or the name of a program", "PROGRAM", parse, _escaped)


def base_image() -> Scalar[str]:
    """A path, or the reference of an image in a registry, which stays as it is."""
    def parse(given: str, origin: Origin) -> str:
        if scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", given):
            if scheme[1] not in ("docker", "oras", "library") or not re.fullmatch(r"[!-~]+", given[scheme.end():]):
                raise ValueError
            return given
        return str(resolve(given, origin))

    return Scalar("the path of an image file or an unpacked image, or docker://..., oras://... or library://...",
                  "IMAGE", parse, _escaped)


def bind() -> Scalar[str]:
    """A bind mount as the container engines take it."""
    def parse(given: str, origin: Origin) -> str:
        parts = given.split(":")
        if "," in given or len(parts) > 3 or parts[2:] not in ([], ["ro"], ["rw"]):
            raise ValueError
        if any(not re.match(r"[/$]", part) for part in parts[1:2]):
            raise ValueError("the target must be absolute")
        inside = [str(resolve(part, origin)) for part in parts[1:2]]
        return ":".join([str(resolve(parts[0], origin)), *inside, *parts[2:]])

    return Scalar("SOURCE, SOURCE:TARGET, SOURCE:TARGET:ro or SOURCE:TARGET:rw, without commas", "BIND", parse,
                  _escaped)


def resolve(given: str, origin: Origin) -> Path:
    """An absolute path from text with `$VAR`, `${VAR}`, `${VAR:-default}`, `$$` for a plain `$`, and `~` in front.

    An empty variable counts as one that isn't set: `$SCRATCH/runs` never becomes `/runs`. Raises ValueError.
    """
    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        if match[0] == "$$":
            return "$"
        if not name:
            raise ValueError("no variable's name after $; a plain $ is written $$")
        found = origin.environ.get(name) or match[3]
        if found is None:
            raise ValueError(f"the variable {name} is not set")
        return found

    expanded = _VARIABLE.sub(value, given)
    if not expanded:
        raise ValueError("empty")
    if re.match(r"~(/|$)", expanded) and "HOME" in origin.environ:
        expanded = origin.environ["HOME"] + expanded[1:]
    try:
        found = Path(expanded).expanduser()
    except RuntimeError:
        raise ValueError(f"{expanded.partition('/')[0]} has no home directory") from None
    return found if found.is_absolute() else origin.folder.absolute() / found


def _escaped(value: object) -> str:
    return str(value).replace("$", "$$")


def _shortened(given: str) -> str:
    return repr(given if len(given) <= 80 else given[:77] + "...")
