"""Jinja2 environments that quote by construction.

Messages come from a network, so a template can't forget to quote: in a shell template every value that is
printed goes through `shlex.quote`, in a definition file through a check that refuses what its parser could
take for something else. `raw` marks what the site's admin wrote, `word` and `int` what needs no quotes.
Templates run in Jinja2's sandbox, and an undefined name is an error.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hpcrunner import resources
from hpcrunner.errors import ConfigError, MessageError


class Raw(str):
    """Text that is printed as it is."""


def shell(name: str, values: Mapping[str, Any], folders: Sequence[Path] = ()) -> str:
    """Renders the job script template `name`. Raises ConfigError if the template is at fault."""
    return _render("templates", name, values, folders, _quote)


def definition(name: str, values: Mapping[str, Any], folders: Sequence[Path] = ()) -> str:
    """Renders the recipe `name` into an Apptainer definition file. Raises ConfigError, and MessageError for
    a value that a definition file can't hold."""
    text = _render("recipes", name, values, folders, _definition_value)
    for number, line in enumerate(text.splitlines(), 1):
        # A section larger than this ends Apptainer's build with "token too long".
        if len(line) > 60_000:
            raise ConfigError(f"recipe {name}: line {number} has {len(line)} characters; put data into %files")
    return text


def _render(kind: str, name: str, values: Mapping[str, Any], folders: Sequence[Path],
            finalize: Callable[[Any], str]) -> str:
    import jinja2

    try:
        return str(_environment(kind, tuple(folders), finalize).get_template(name).render(values))
    except jinja2.TemplateNotFound as error:
        where = ", ".join(str(folder) for folder in (*folders, resources.folder(kind)))
        raise ConfigError(f"{kind}: no template {error.name!r} in {where}") from error
    except jinja2.TemplateSyntaxError as error:
        raise ConfigError(f"{error.filename or name}:{error.lineno}: {error.message}") from error
    except jinja2.TemplateError as error:
        raise ConfigError(f"{kind}/{name}: {error.message}") from error


@cache
def _environment(kind: str, folders: tuple[Path, ...], finalize: Callable[[Any], str]) -> Any:
    """Kept, and with it what it compiled: that takes longer than all else about a job script."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        loader=jinja2.FileSystemLoader([*folders, resources.folder(kind)]), undefined=jinja2.StrictUndefined,
        finalize=finalize, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, autoescape=False)
    environment.filters.update(raw=Raw, sh=_shell, word=_word, int=_whole)
    return environment


def _quote(value: Any) -> str:
    return value if isinstance(value, Raw) else shlex.quote(_text(value))


def _shell(value: Any) -> Raw:
    return Raw(shlex.quote(_text(value)))


def _definition_value(value: Any) -> str:
    text = _text(value)
    if isinstance(value, Raw):
        return text
    if re.search(r"[\x00-\x1f\x7f]|\{\{|^\s*%", text):
        raise MessageError(f"a definition file can't hold {text!r}: no control characters, no {{{{, no % in front")
    return text


def _word(value: Any) -> Raw:
    text = _text(value)
    if not re.fullmatch(r"[A-Za-z0-9_.:/@+-]+", text):
        raise ConfigError(f"a template prints {text!r} where only a plain word may stand")
    return Raw(text)


def _whole(value: Any) -> Raw:
    return Raw(int(value))


def _text(value: Any) -> str:
    text = str(value)
    if "\0" in text:
        raise MessageError(f"{text[:80]!r}: NUL can't stand in a script")
    return text
