"""The site config reference, from the schema: `python -m hpcrunner.config.reference >docs/site-config.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from hpcrunner import plugins
from hpcrunner.config.backends import QueueEntry
from hpcrunner.config.kinds import Section
from hpcrunner.config.load import OTHER_VARIABLES
from hpcrunner.config.schema import Option, options_of
from hpcrunner.config.site import OPTIONS
from hpcrunner.config.stores import StoreProfile

_INTRODUCTION = """\
# Site config reference

<!-- Made from the schema; do not edit: python -m hpcrunner.config.reference >docs/site-config.md -->

A site config is a YAML file. `hpcrunner --help` says how commands are told which one: `--site FILE`, or the
variable `HPCRUNNER_SITE`. The name of a site config that ships with hpcrunner, such as `laptop`, will do as well.

```yaml
extends: laptop
queues:
  - type: local
    root: ~/.studioml/queue
max_cores: 8
max_mem: 32GiB
```

`hpcrunner site check FILE` finds everything that is wrong with a file, and `hpcrunner site show FILE` prints
what it amounts to, with the source of every value. `site check` is for the host that runs hpcrunner: `bin_dir`, `conf`,
`job_template` and `recipe` must be there, if they are given. `hpcrunner site options` prints this page.

## How values are written

- **Precedence.** The command line wins over the environment, the environment over the file, the file over what
  it extends, and that over the default. Options that hold a single value can be set in all three places. A bad
  value is an error wherever it stands, and all of them are reported at once.
- **Extends.** `extends:` holds the name of a shipped site config, a path (relative to the file), or a list of these,
  of which the later win. Lists and single values replace what is inherited. Mappings (`env`, `base_images`,
  `pythons`) merge key by key.
- **Text.** Values are taken as they are written: `0123` stays `0123`, and `3.10` is not `3.1`. YAML's anchors,
  aliases and merge keys work; a key that is there twice is an error.
- **Nothing.** An empty value or `null` stands for the default, and in a mapping for an entry that is not
  inherited. A partition for which all is left to the defaults is written `cpu: {}`. The command line and the
  environment know the word `null` too.
- **Paths.** `~`, `$VAR`, `${VAR}` and `${VAR:-default}` are expanded; a variable that is empty or not set is an
  error; `$$` is a plain `$`. A relative path is relative to the file that names it, on the command line and in the
  environment to the working directory.
- **Sizes** are bytes: `512MiB`, `2GB`, `100g`. **Durations**: `90s`, `1h30m`, `2d`, and Slurm's `2-12:00:00`. A number
  alone is in bytes or seconds. Slurm means MB and minutes by such a number, so sizes under `slurm` and `max_walltime`
  need their unit.
- **Regular expressions** are Python's, and match anywhere unless they begin with `^`.
- **Switches** are `true` or `false`; on the command line `--debug` or `--no-debug`.
"""

_VARIABLES = """\
## Other variables

Any other variable whose name begins with `HPCRUNNER_` is an error, so that a slip of the pen is seen.
"""


def markdown() -> str:
    """The whole page."""
    return "\n".join([_INTRODUCTION, *_options(), *_stores(), *_queue_types(), *_schedulers(), _VARIABLES,
                      *_variables(), ""])


def _options() -> Iterator[str]:
    for name, option in OPTIONS.items():
        if option.heading:
            yield f"## {option.heading}\n"
        places = ["file"]
        if option.kind.is_scalar:
            flag = f"--{name.replace('_', '-')}"
            places += [f"`HPCRUNNER_{name.upper()}`", f"`{flag}`"]
        yield _entry(name, option, ", ".join(places))


def _stores() -> Iterator[str]:
    yield "## Keys of each entry of `stores`\n"
    yield from _section("stores", StoreProfile)


def _queue_types() -> Iterator[str]:
    for name in plugins.shipped("queues"):
        yield f"## Entries of `queues` with `type: {name}`\n"
        for key, option in QueueEntry().options(name).items():
            if key != "type":
                yield _entry(key, option, "")


def _schedulers() -> Iterator[str]:
    for name in plugins.shipped("schedulers"):
        if options := plugins.options("schedulers", name):
            yield f"## Keys of `{name}`\n"
            yield from _section(name, options)


def _section(key: str, cls: type) -> Iterator[str]:
    inner = []
    for name, option in options_of(cls).items():
        yield _entry(name, option, "")
        if isinstance(section := getattr(option.kind, "item", None), Section):
            inner.append((f"{key}.{name}", section.cls))
    for name, of in inner:
        yield f"## Keys of each entry of `{name}`\n"
        yield from _section(name, of)


def _variables() -> Iterator[str]:
    yield "| variable | meaning |\n| --- | --- |"
    for name, meaning in OTHER_VARIABLES.items():
        yield f"| `{name}` | {meaning} |"


def _entry(name: str, option: Option, places: str) -> str:
    default = f"`{option.default}`" if isinstance(option.default, str) else "empty"
    if option.default and isinstance(option.default, (list, tuple)):
        default = f"`[{', '.join(option.default)}]`"
    if option.default is None:
        default = option.unset
    lines = [f"### `{name}`\n", f"{option.doc}\n", f"- Allowed: {option.kind.allowed}",
             "- Must be set" if option.is_required else f"- Default: {default}"]
    if places:
        lines.append(f"- Set in: {places}")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.stdout.write(markdown())
