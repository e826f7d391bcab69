"""What is wrong with a site config although each of its values is right by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hpcrunner import resources
from hpcrunner.config.kinds import MappingOf
from hpcrunner.config.schema import Given, Option
from hpcrunner.config.site import Site


def void(options: Mapping[str, Option], layer: Mapping[str, Given], under: Mapping[str, Given], prefix: str = ""
         ) -> Iterator[str]:
    """Entries without a value, such as a partition's, that take nothing away from what a file inherits."""
    for name, given in layer.items():
        kind = options[name].kind if name in options else None
        if kind is None or not isinstance(given.content, dict) or not kind.inner():
            continue
        below = under[name].content if name in under else None
        below = below if isinstance(below, dict) else {}
        if not isinstance(kind, MappingOf):
            yield from void(kind.inner(), given.content, below, f"{prefix}{name}.")
            continue
        for key, item in given.content.items():
            if item.content is None and key not in below and key not in kind.inner():
                yield str(item.problem(f"{prefix}{name}.{key}", "holds nothing, and inherits nothing: write "
                                       f"`{key}: {{}}` if all its options shall have their defaults"))


def mistakes(site: Site, tree: Mapping[str, Given]) -> Iterator[str]:
    """Options that don't go together."""
    slurm = tree.get("slurm")
    scheduler = tree.get("scheduler")
    if slurm and slurm.content is not None and (scheduler is None or scheduler.content is None):
        # Jobs would run on the login node. Who says `scheduler: direct` means it.
        yield str(slurm.problem("slurm", f"has no effect with scheduler: {site.scheduler}; say `scheduler: slurm`, or "
                                         "`extends: slurm`"))
    if site.slurm is not None:
        yield from _told(tree, "slurm", site.slurm.mistakes(site))


def missing(site: Site, tree: Mapping[str, Given]) -> Iterator[str]:
    """Files that the config names and this host doesn't have."""
    for name, kind, file in (("job_template", "templates", site.job_template),
                             ("recipe", "recipes", f"{site.recipe}.def.j2")):
        folders = [*site.template_dirs, resources.folder(kind)]
        if file and not any((folder / file).is_file() for folder in folders):
            yield str(_at(tree, (name,)).problem(name, f"there is no {file} in {', '.join(map(str, folders))}"))
    if site.slurm is not None and site.scheduler == "slurm":
        yield from _told(tree, "slurm", site.slurm.missing())


def _told(tree: Mapping[str, Given], section: str, found: Iterator[tuple[tuple[str, ...], str]]) -> Iterator[str]:
    for path, text in found:
        yield str(_at(tree, (section, *path)).problem(".".join((section, *path)), text))


def _at(tree: Mapping[str, Given], path: tuple[str, ...]) -> Given:
    """What stands there, or around it if it has its default."""
    given = tree[path[0]]
    for key in path[1:]:
        if not isinstance(given.content, dict) or key not in given.content:
            break
        given = given.content[key]
    return given
