"""Kinds of options: how text becomes a value, or a problem that says what would be right.

Queue backends declare options of their own with these kinds; nothing here knows of files or YAML.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

from hpcrunner.config.schema import Given, Kind, Origin, Plain, Problems, options_of, read_options
from hpcrunner.config.schema import Option as Option
from hpcrunner.config.schema import option as option
from hpcrunner.errors import ConfigError
from hpcrunner.units import format_duration, format_size, parse_duration, parse_size

T = TypeVar("T")
_VARIABLE = re.compile(r"\$(?:\$|([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}|)")
_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})


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

    def but(self, pattern: str, reason: str) -> Scalar[T]:
        """The same, without the texts that match. The reason may hold the pattern's groups."""
        def parse(given: str, origin: Origin) -> T:
            if match := re.fullmatch(pattern, given, re.IGNORECASE):
                raise ValueError(match.expand(reason))
            return self._parse(given, origin)

        return Scalar(self.allowed, self.metavar, parse, self._write, secret=self._secret)


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

    inside = "in an entry of `{}:`"

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
                if name in self.inner() and not isinstance(item.content, dict):
                    raise item.problem(f"{key}.{name}", f"`{name}` is an option of an entry of {key}: indent it "
                                                        "further, below the entry's name")
                if item.content is not None:
                    values[name] = self.item.read(item, f"{key}.{name}")
        problems.check()
        return values

    def plain(self, value: Mapping[str, T]) -> Plain:
        return {name: self.item.plain(item) for name, item in value.items()}

    def secrets(self, given: Given) -> Iterator[Given]:
        for item in given.content.values() if isinstance(given.content, dict) else ():
            yield from self.item.secrets(item)

    def inner(self) -> Mapping[str, Option]:
        return self.item.inner()


class Section(Kind[T]):
    """A mapping whose keys are the options of a dataclass (see `hpcrunner.config.schema.option`)."""

    allowed = "a mapping of options"

    def __init__(self, cls: type[T]) -> None:
        self.cls = cls

    def read(self, given: Given, key: str) -> T:
        if not isinstance(given.content, dict):
            raise self.wrong(given, key)
        return self.cls(**read_options(options_of(self.cls), given, f"{key}."))

    def plain(self, value: T) -> Plain:
        held = {name: (option, getattr(value, name)) for name, option in options_of(self.cls).items()}
        return {name: option.kind.plain(item) for name, (option, item) in held.items() if item is not None}

    def secrets(self, given: Given) -> Iterator[Given]:
        options = options_of(self.cls)
        for name, item in given.content.items() if isinstance(given.content, dict) else ():
            if name in options and item.content is not None:
                yield from options[name].kind.secrets(item)

    def inner(self) -> Mapping[str, Option]:
        return options_of(self.cls)


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
        if given.lower() not in _TRUE | _FALSE:
            raise ValueError
        return given.lower() in _TRUE

    return Scalar("true or false", "true|false", parse, lambda value: "true" if value else "false")


def integer(minimum: int = 0) -> Scalar[int]:
    def parse(given: str, origin: Origin) -> int:
        # Not int() alone, which takes "1_000" and digits of other scripts.
        if not re.fullmatch(r"[0-9]{1,18}", given) or int(given) < minimum:
            raise ValueError
        return int(given)

    return Scalar(f"a whole number, {minimum} or more", "N", parse)


def size(minimum: int = 0) -> Scalar[int]:
    """Bytes."""
    def parse(given: str, origin: Origin) -> int:
        number = _quietly(parse_size, given)
        if number < minimum:
            raise ValueError(f"less than {format_size(minimum)}")
        return number

    def write(value: int) -> str:
        short = format_size(value).replace(" ", "")
        return short if value >= 1024 and parse_size(short) == value else f"{value}B"

    return Scalar("a size such as 512MiB or 2GiB", "SIZE", parse, write)


def duration(minimum: float = 0) -> Scalar[float]:
    """Seconds."""
    def parse(given: str, origin: Origin) -> float:
        seconds = _quietly(parse_duration, given)
        if seconds < minimum:
            raise ValueError(f"less than {minimum}s")
        return seconds

    def write(value: float) -> str:
        short = format_duration(value)
        return short if parse_duration(short) == value else f"{value:.9f}s"

    return Scalar("a duration such as 90s, 1h30m or 2d, at most ten years", "TIME", parse, write)


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
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", given):
            if not re.fullmatch(r"(docker|oras|library)://[!-~]+", given):
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

    return Scalar("SOURCE, SOURCE:TARGET, SOURCE:TARGET:ro or SOURCE:TARGET:rw, without commas", "BIND",
                  parse, _escaped)


def resolve(given: str, origin: Origin) -> Path:
    """An absolute path from text with `$VAR`, `${VAR}`, `${VAR:-default}`, `$$` for a plain `$`, and `~` in
    front. An empty variable counts as one that isn't set: `$SCRATCH/runs` never becomes `/runs`.

    Raises ValueError.
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


def _quietly(parse: Callable[[str], T], given: str) -> T:
    """Without a reason, which would say the same as what is allowed."""
    try:
        return parse(given)
    except ValueError:
        raise ValueError from None
