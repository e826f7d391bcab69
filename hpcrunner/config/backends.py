"""Kinds of options that name a backend, and the entries of `queues`, whose keys depend on the backend."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hpcrunner import plugins
from hpcrunner.config.kinds import Scalar, Section
from hpcrunner.config.schema import Given, Kind, Option, Plain, read_options, suggest
from hpcrunner.errors import ConfigError


def backend(group: str, *also: str) -> Scalar[str]:
    """The name of a backend of `group`, or one of the words in `also`."""
    def parse(given: str, _: object) -> str:
        if given not in also and not plugins.is_known(group, given):
            raise ValueError(suggest(given, [*also, *plugins.names(group)]))
        return given

    words = f"{', '.join(also)}, or one" if also else "one"
    return Scalar(f"{words} of hpcrunner's {group}", "NAME", parse)


class SchedulerOptions(Kind[Any]):
    """The options that a scheduler declares for itself: a dataclass, loaded when used."""

    allowed = "a mapping of options"

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def section(self) -> Section[Any]:
        return Section(plugins.options("schedulers", self.name))

    def read(self, given: Given, key: str) -> Any:
        return self.section.read(given, key)

    def plain(self, value: Any) -> Plain:
        return self.section.plain(value)

    def secrets(self, given: Given) -> Iterator[Given]:
        return self.section.secrets(given)

    def inner(self) -> Mapping[str, Option]:
        return self.section.inner()


@dataclass(frozen=True)
class QueueSource:
    """One entry of `queues`: a broker, or a folder, with queues."""

    type: str
    """Name of the backend."""
    options: Mapping[str, Any]
    """The backend's own options by name, all of them."""


class QueueEntry(Kind[QueueSource]):
    allowed = "a mapping, with the `type` of the queue and that type's options"
    type_option = Option(backend("queues"), "local", "Kind of queue.")

    def read(self, given: Given, key: str) -> QueueSource:
        if not isinstance(given.content, dict):
            raise self.wrong(given, key)
        kind = given.content.get("type", given)
        name = self._type(given.content, key)
        try:
            options = self.options(name)
        except ConfigError as error:
            raise kind.problem(f"{key}.type", str(error)) from error
        values = read_options(options, given, f"{key}.")
        return QueueSource(values.pop("type"), values)

    def plain(self, value: QueueSource) -> Plain:
        options = self.options(value.type)
        held = {"type": value.type, **value.options}
        return {name: options[name].kind.plain(item) for name, item in held.items() if item is not None}

    def secrets(self, given: Given) -> Iterator[Given]:
        table = given.content if isinstance(given.content, dict) else {}
        for name, option in self.options(self._type(table, "")).items():
            if name in table and table[name].content is not None:
                yield from option.kind.secrets(table[name])

    def options(self, name: str) -> dict[str, Option]:
        """All keys of an entry with the type `name`."""
        return {"type": self.type_option, **plugins.load("queues", name).options}

    def _type(self, table: Mapping[str, Given], key: str) -> str:
        given = table.get("type")
        option = self.type_option
        name: str = option.value() if given is None or given.content is None else option.kind.read(given, f"{key}.type")
        return name
