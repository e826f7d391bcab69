"""From files, the environment and the command line to a checked `Site`, and back to a file for people.

The command line wins over the environment, the environment over the file, the file over what it extends, and
that over the default. All problems are reported together, whichever of them holds a bad value.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from hpcrunner.config import checks, document
from hpcrunner.config.schema import Given, Origin, Plain, Problems, nearest, read_options
from hpcrunner.config.site import OPTIONS, Site

_PREFIX = "HPCRUNNER_"
OTHER_VARIABLES = {
    "HPCRUNNER_SITE": "the site config, where `--site` is not given",
    "HPCRUNNER_REQUIRE": "services that the tests must find",
    "HPCRUNNER_STUDIOML": "the StudioML client that the tests use",
    "HPCRUNNER_SERVERS": "the servers of stores that the tests use",
    "HPCRUNNER_BASE_IMAGE": "the base image that the tests use",
    "HPCRUNNER_TEST_CACHE": "where `make test` and `make demo` keep what they install",
    "HPCRUNNER_SLURM_DIR": "where `scripts/slurm-cluster` keeps the clusters of the tests",
    "HPCRUNNER_SLURM_PORT": "the first of their ports",
    "HPCRUNNER_TAG": "set in job scripts: the job's name",
    "HPCRUNNER_EXPERIMENT": "set in jobs: the experiment's key",
    "HPCRUNNER_RUN_DIR": "set in jobs: the run directory",
}
"""Variables with our prefix that are no options."""

_UNQUOTED = re.compile(r"[A-Za-z0-9/_.^](?:[A-Za-z0-9/_.^@%+=$()~,| -]|:(?=\S))*(?<! )")
"""Text that YAML takes as it is."""


@dataclass(frozen=True)
class Loaded:
    site: Site
    sources: Mapping[str, str]
    """Where each value comes from, by key (`max_cores`, `env.LANG`, `queues[0].root`): `default`,
    `laptop.yaml:12`, `HPCRUNNER_MAX_CORES` or `--max-cores`. Defaults within lists and mappings are left out."""
    warnings: tuple[str, ...]


def load(path: Path | None = None, *, overrides: Mapping[str, str] = {}, environ: Mapping[str, str] = os.environ,
         here: bool = False) -> Loaded:
    """`path` is a file, or the name of a site config that ships with hpcrunner; without it HPCRUNNER_SITE says.
    `overrides` are texts from the command line by name of the option. `here`: files that it names must be on this host.

    Raises ConfigError with every problem that was found.
    """
    if path is None and environ.get("HPCRUNNER_SITE"):
        path = Path(environ["HPCRUNNER_SITE"])
    problems = Problems()
    layers = document.read(path, environ, problems) if path else []
    unread = bool(problems)
    layers += [_from_environment(environ, problems), _from_command_line(overrides, environ)]
    origin = Origin(str(path or "site config"), Path(), environ)
    tree: dict[str, Given] = {}
    for layer in layers:
        with problems:  # Each by itself: what is wrong is wrong even where something else overrides it.
            read_options(OPTIONS, Given(layer, origin))
        problems += checks.void(OPTIONS, layer, tree)
        tree = document.merge(tree, layer)
    if not unread and ("queues" not in tree or not tree["queues"].content):
        problems.append(f"{origin.name}: queues: there are none; for the StudioML client's local queues write "
                        "`queues: [{type: local}]`")
    problems.check()
    values = read_options(OPTIONS, Given(tree, origin))
    site = Site(**values)
    problems += checks.mistakes(site, tree)
    if here:
        problems += checks.missing(site, tree)
    problems.check()
    return Loaded(site, dict(_sources(tree)), tuple(_warnings(site, tree)))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds every option that is a single text."""
    group = None
    for name, option in OPTIONS.items():
        if option.heading or group is None:
            group = parser.add_argument_group(f"site options: {option.heading.lower()}")
        if not option.kind.is_scalar:
            continue
        flag, target = f"--{name.replace('_', '-')}", f"option_{name}"
        default = option.unset if option.default is None else option.default
        text = f"{option.doc} Default: {default}".replace("`", "").replace("%", "%%")
        if option.kind.metavar == "true|false":
            group.add_argument(flag, dest=target, action="store_const", const="true", help=text)
            group.add_argument(f"--no-{flag[2:]}", dest=target, action="store_const", const="false",
                               help=f"The opposite of {flag}.")
        else:
            group.add_argument(flag, dest=target, metavar=option.kind.metavar, help=text)


def overrides_from(namespace: argparse.Namespace) -> dict[str, str]:
    """What the command line gave for the arguments of `add_arguments`."""
    given = {name: getattr(namespace, f"option_{name}", None) for name in OPTIONS}
    return {name: text for name, text in given.items() if text is not None}


def show(loaded: Loaded) -> str:
    """The site as one YAML file, without `extends`, with the source of each value as a comment. It loads to the
    same site again, but for secrets, which are shown as `***`."""
    lines = []
    for name, option in OPTIONS.items():
        value = getattr(loaded.site, name)
        source = loaded.sources.get(name, "default")
        if value is None:
            lines.append(f"{name}: null  # {source}")
        elif _is_block(plain := option.kind.plain(value)):
            lines += [f"{name}: |  # {source}", *(f"  {line}" if line else "" for line in plain.splitlines())]
        else:
            lines += _lines(f"{name}:", name, plain, loaded.sources, "")
    return "\n".join(lines) + "\n"


def _from_environment(environ: Mapping[str, str], problems: Problems) -> dict[str, Given]:
    found = {}
    for variable, text in environ.items():
        if not variable.startswith(_PREFIX) or variable in OTHER_VARIABLES:
            continue
        name = variable[len(_PREFIX):].lower()
        if name not in OPTIONS or variable != variable.upper():
            near = nearest(name, [*OPTIONS, "site"])
            problems.append(f"{variable}: there is no such option"
                            + (f"; did you mean {_PREFIX}{near.upper()}?" if near else ""))
        elif not OPTIONS[name].kind.is_scalar:
            problems.append(f"{variable}: {name} holds more than one value; it can only be set in a file")
        else:
            found[name] = _outside(text, variable, environ)
    return found


def _from_command_line(overrides: Mapping[str, str], environ: Mapping[str, str]) -> dict[str, Given]:
    return {name: _outside(text, f"--{name.replace('_', '-')}", environ) for name, text in overrides.items()}


def _outside(text: str, name: str, environ: Mapping[str, str]) -> Given:
    return Given(None if text == "null" else text, Origin(name, Path(), environ))


def _sources(tree: Mapping[str, Given]) -> Iterator[tuple[str, str]]:
    for name in OPTIONS:
        yield name, "default"
    for name, given in tree.items():
        yield from _sources_below(name, given)


def _sources_below(key: str, given: Given) -> Iterator[tuple[str, str]]:
    if given.content is not None:
        yield key, given.source
    if isinstance(given.content, dict):
        for name, item in given.content.items():
            yield from _sources_below(f"{key}.{name}", item)
    elif isinstance(given.content, list):
        for index, item in enumerate(given.content):
            yield from _sources_below(f"{key}[{index}]", item)


def _warnings(site: Site, tree: Mapping[str, Given]) -> Iterator[str]:
    if site.engine in ("apptainer", "singularity") and not site.base_images:
        yield (f"engine: {site.engine} without base_images builds no images: only experiments that bring an image "
               "run; write for instance `base_images: {any: /shared/python.sif}`")
    secrets = [secret for name, given in tree.items() if given.content is not None
               for secret in OPTIONS[name].kind.secrets(given) if secret.line]
    for name in dict.fromkeys(secret.origin.name for secret in secrets):
        if Path(name).stat().st_mode & 0o044:
            yield f"{name}: holds secrets, and others may read it; mend it with `chmod 600`"


def _lines(head: str, key: str, plain: Plain, sources: Mapping[str, str], indent: str) -> Iterator[str]:
    note = f"  # {sources.get(key, 'default')}"
    if not plain or isinstance(plain, str):
        text = _scalar(plain) if isinstance(plain, str) else "{}" if isinstance(plain, dict) else "[]"
        yield f"{indent}{head} {text}{note}"
        return
    yield f"{indent}{head}{note}"
    if isinstance(plain, dict):
        for name, item in plain.items():
            yield from _lines(f"{_scalar(name)}:", f"{key}.{name}", item, sources, indent + "  ")
    else:
        for index, item in enumerate(plain):
            yield from _lines("-", f"{key}[{index}]", item, sources, indent + "  ")


def _is_block(plain: Plain) -> TypeGuard[str]:
    """Lines that YAML can hold as a block, without quotes."""
    return (isinstance(plain, str) and plain.endswith("\n") and not plain.startswith((" ", "\n"))
            and not plain.endswith("\n\n") and all(line.isprintable() for line in plain.split("\n")))


def _scalar(text: str) -> str:
    if _UNQUOTED.fullmatch(text) and text.lower() != "null":
        return text
    return '"' + "".join(_escaped(char) for char in text) + '"'


def _escaped(char: str) -> str:
    if char in '"\\':
        return f"\\{char}"
    if char.isprintable():
        return char
    return {"\n": "\\n", "\t": "\\t"}.get(char, f"\\U{ord(char):08x}")
