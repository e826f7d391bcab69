"""What an option is: what somebody wrote and where, how it is read, and the problems that come of it."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

from hpcrunner.errors import ConfigError

T = TypeVar("T")
Plain: TypeAlias = "str | list[Plain] | dict[str, Plain]"
"""A value as it would be written in a file."""


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
        """Raises all of them as one ConfigError, if there are any, each once."""
        if self:
            raise ConfigError(list(dict.fromkeys(self)))


class Kind(ABC, Generic[T]):
    """How values of one kind are written and read."""

    allowed: str
    """What may be written, for people."""
    is_scalar = False
    """A single text, so it can also stand on the command line and in the environment."""
    metavar = "TEXT"
    inside = "under `{}:`"
    """Where an option of `inner` stands, with the name of this one."""

    @abstractmethod
    def read(self, given: Given, key: str) -> T:
        """The value of `given`, whose content isn't None. Raises ConfigError with every problem in it."""

    @abstractmethod
    def plain(self, value: T) -> Plain:
        """The opposite: what to write in a file to get this value, `***` for a secret."""

    def secrets(self, given: Given) -> Iterator[Given]:
        """The secrets in it."""
        return iter(())

    def inner(self) -> Mapping[str, Option]:
        """The options that may stand in it, if it is a mapping of options, or of such mappings."""
        return {}

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


def option(default: Any, kind: Kind[Any], doc: str, *, unset: str = "not set", heading: str = "") -> Any:
    """A field of a dataclass whose fields are options; see `Option`."""
    described = Option(kind, default, doc, unset, heading)
    return field(default_factory=described.value, metadata={"option": described})


def options_of(cls: type) -> dict[str, Option]:
    """The options of such a dataclass, in the order in which people are shown them."""
    return {described.name: described.metadata["option"] for described in fields(cls)}


def read_options(options: Mapping[str, Option], table: Given, prefix: str = "") -> dict[str, Any]:
    """The value of every option, given in the mapping `table` or default.

    Raises ConfigError with every problem in the table.
    """
    problems, values = Problems(), {}
    entries = table.content if isinstance(table.content, dict) else {}
    for key, given in entries.items():
        if key not in options:
            where = f"{given.origin.name}:{given.key_at}"
            problems.append(f"{where}: {prefix}{key}: unknown; {_belongs(key, options) or suggest(key, options)}")
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
    """What the writer of an unknown word may have meant: a word that has it as a part, or one that looks like it."""
    from difflib import get_close_matches

    word, known = word.lower().replace("-", "_"), list(known)
    holding = [name for name in known if len(word) > 2 and word in name.replace("-", "_")]
    return next(iter(holding or get_close_matches(word, known, 1)), None)


def suggest(word: str, known: Collection[str]) -> str:
    """The end of a message about an unknown word."""
    if near := nearest(word, known):
        return f"did you mean {near}?"
    return f"known: {', '.join(known)}" if len(known) <= 12 else "`hpcrunner site options` lists all"


def _belongs(key: str, options: Mapping[str, Option]) -> str:
    """Where an option of something further in belongs; empty if it is none."""
    if any(name.startswith(key) for name in options):
        return ""
    return next((f"it belongs {option.kind.inside.format(name)}" for name, option in options.items()
                 if key in option.kind.inner()), "")


def _shortened(given: str) -> str:
    return repr(given if len(given) <= 80 else given[:77] + "...")
