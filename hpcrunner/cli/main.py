"""`hpcrunner`: the commands, their options and their exit codes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from hpcrunner import __version__
from hpcrunner.errors import HpcrunnerError, StoreError, UsageError

_EPILOG = """\
exit codes: 0 all went well; 64 wrong usage; 65 a message can't be understood; 66 no such experiment or file;
69 a program or service that is needed can't be had; 70 a fault in hpcrunner; 74 a store or disk failed;
75 another process works on this install, try later; 78 the configuration is wrong; 130 interrupted

An experiment that fails is no failure of the command: `hpcrunner status` tells how experiments ended.
Every site option that holds a single value can also be set in the environment (HPCRUNNER_MAX_CORES=4) and in
the site file (max_cores: 4); the command line wins over the environment, and the environment over the file.
Lists, mappings and the keys of `slurm` stand in the file only.
"""


class _Parser(argparse.ArgumentParser):
    def __init__(self, **settings: object) -> None:
        settings.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(**settings)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(UsageError.exit_code, f"{self.prog}: {message}; `{self.prog} --help` tells more\n")


def parser() -> argparse.ArgumentParser:
    top = _Parser(prog="hpcrunner", description="Runs StudioML experiments from a queue on this cluster.",
                  epilog=_EPILOG)
    top.add_argument("--version", action="version", version=f"hpcrunner {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    _submit(commands)
    _status(commands)
    _logs(commands)
    _cancel(commands)
    _return_results(commands)
    _resolve(commands)
    _doctor(commands)
    _render(commands)
    _site(commands)
    _recipe(commands)
    _stock(commands, "cache", "objects that experiments read", "cache_dir")
    _stock(commands, "images", "images that were built", "image_dir")
    shell = commands.add_parser(
        "completion", help="print a completion script for your shell",
        epilog="example:\n  mkdir -p ~/.local/share/bash-completion/completions\n"
               "  hpcrunner completion bash > ~/.local/share/bash-completion/completions/hpcrunner")
    shell.add_argument("shell", choices=["bash", "zsh", "tcsh"])
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = parser().parse_args(argv)
    try:
        return _run(arguments)
    except HpcrunnerError as error:
        for line in str(error).splitlines():
            print(f"hpcrunner: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `hpcrunner status | head`: whoever read has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        # A full disk, a read-only file system, a folder of somebody else's.
        print(f"hpcrunner: {f'{error.filename}: {error.strerror}' if error.filename else error}", file=sys.stderr)
        return StoreError.exit_code


def _run(arguments: argparse.Namespace) -> int:
    # Each command is imported when it is used: cron starts this every minute, mostly to find nothing.
    command = arguments.command
    if command == "submit-from-queue":
        from hpcrunner.cli import submit

        return submit.run(arguments)
    if command == "status":
        from hpcrunner.cli import status

        return status.run(arguments)
    if command == "logs":
        from hpcrunner.cli import logs

        return logs.run(arguments)
    if command in ("cancel", "return-results", "resolve"):
        from hpcrunner.cli import cancel

        asks = {"cancel": cancel.cancel, "return-results": cancel.return_results, "resolve": cancel.resolve}
        return asks[command](arguments)
    if command == "doctor":
        from hpcrunner.cli import doctor

        return doctor.run(arguments)
    if command == "render":
        from hpcrunner.cli import render

        return render.run(arguments)
    if command == "site":
        from hpcrunner.cli import site

        return site.run(arguments)
    if command == "recipe":
        from hpcrunner.cli import recipe

        return recipe.run(arguments)
    if command in ("cache", "images"):
        from importlib import import_module

        return int(import_module(f"hpcrunner.cli.{command}").run(arguments))
    import shtab

    print(shtab.complete(parser(), shell=arguments.shell))
    return 0


def add_site(command: argparse.ArgumentParser, *, options: bool = False) -> None:
    command.add_argument(
        "--site", metavar="FILE", type=Path,
        help="the site config, a file or the name of a shipped one such as `laptop` (default: $HPCRUNNER_SITE)")
    if options:
        from hpcrunner.config.load import add_arguments

        add_arguments(command)


def _submit(commands: argparse._SubParsersAction[_Parser]) -> None:
    command = commands.add_parser(
        "submit-from-queue", help="take experiments from the queues and move all of them on: one tick",
        description="Takes experiments from the site's queues and moves every experiment as far as it can go,\n"
                    "then returns. Run it from cron, or with --wait until all is done.",
        epilog="examples:\n"
               "  hpcrunner submit-from-queue --site site.yaml            one tick, for cron\n"
               "  hpcrunner submit-from-queue --site site.yaml --wait     until nothing is left to do\n"
               "  hpcrunner submit-from-queue --site site.yaml --dry-run  show what would be submitted\n"
               "  HPCRUNNER_MAX_CORES=4 hpcrunner submit-from-queue --site site.yaml")
    command.add_argument("--wait", action="store_true", help="go on until nothing is left to do")
    command.add_argument("--max", metavar="N", type=_positive,
                         help="take at most N experiments from the queues; while files are moving, N more each minute")
    command.add_argument("--dry-run", action="store_true", help="show what would be submitted, rendered; touch nothing")
    add_site(command, options=True)


def _status(commands: argparse._SubParsersAction[_Parser]) -> None:
    command = commands.add_parser(
        "status", help="show the experiments, or all about one",
        epilog="examples:\n  hpcrunner status --site site.yaml\n  hpcrunner status --json | jq '.[].state'\n"
               "  hpcrunner status my-experiment")
    command.add_argument("key", nargs="?", help="show this experiment with its history")
    command.add_argument("--json", action="store_true", help="for programs")
    add_site(command)


def _logs(commands: argparse._SubParsersAction[_Parser]) -> None:
    command = commands.add_parser(
        "logs", help="show what an experiment printed", epilog="example:\n  hpcrunner logs my-experiment -f")
    command.add_argument("key", help="the experiment")
    command.add_argument("-f", "--follow", action="store_true", help="go on until it ends")
    add_site(command)


def _cancel(commands: argparse._SubParsersAction[_Parser]) -> None:
    command = commands.add_parser(
        "cancel", help="end experiments, and return what they have so far",
        description="Ends experiments wherever they are. A running one gets SIGTERM and the site's kill_grace to save\n"
                    "what it has; its results so far are returned.",
        epilog="example:\n  hpcrunner cancel my-experiment my-other-experiment")
    command.add_argument("key", nargs="+", help="the experiments")
    command.add_argument("--reason", metavar="TEXT", help="stands in the user's log and record")
    add_site(command)


def _return_results(commands: argparse._SubParsersAction[_Parser]) -> None:
    command = commands.add_parser(
        "return-results", help="return results that had to be kept, as their store did not take them",
        description="Tries again to return results of experiments that are over, for as long as the site's\n"
                    "store_patience; `hpcrunner status KEY` says why they could not be returned.",
        epilog="example:\n  hpcrunner return-results my-experiment my-other-experiment")
    command.add_argument("key", nargs="+", help="the experiments")
    add_site(command)


def _resolve(commands: argparse._SubParsersAction[_Parser]) -> None:
    command = commands.add_parser(
        "resolve", help="say whether the scheduler has a job whose submission had no answer",
        description="When the scheduler gave no answer to a submission, hpcrunner looks for the job by its name.\n"
                    "Where it can't (the accounting is away for days, say), look yourself and tell it.",
        epilog="examples:\n  hpcrunner resolve my-experiment --job 4711\n  hpcrunner resolve my-experiment --no-job")
    command.add_argument("key", help="the experiment")
    answer = command.add_mutually_exclusive_group(required=True)
    answer.add_argument("--job", metavar="ID", help="this is its job")
    answer.add_argument("--no-job", action="store_true", help="there is none: submit it again")
    add_site(command)


def _doctor(commands: argparse._SubParsersAction[_Parser]) -> None:
    command = commands.add_parser(
        "doctor", help="find what is wrong, and say what to do about it",
        description="Looks for jobs that wait for what won't come by itself, submissions that are refused or had no\n"
                    "answer for long, jobs that nobody waits for, and a scheduler that doesn't answer. Exit code 1 if\n"
                    "something was found.",
        epilog="example:\n  hpcrunner doctor --site site.yaml")
    command.add_argument("--json", action="store_true", help="for programs")
    add_site(command)


def _render(commands: argparse._SubParsersAction[_Parser]) -> None:
    command = commands.add_parser(
        "render", help="render the definition file and job script of a message, offline",
        epilog="example:\n  hpcrunner render message.json --site site.yaml --out rendered/")
    command.add_argument("message", type=Path, metavar="MESSAGE.json")
    command.add_argument("--out", type=Path, metavar="DIR", required=True, help="where to write the files")
    add_site(command, options=True)


def _site(commands: argparse._SubParsersAction[_Parser]) -> None:
    command = commands.add_parser("site", help="check or show a site config")
    parts = command.add_subparsers(dest="part", metavar="check|show|options", required=True, parser_class=_Parser)
    for name, text in (("check", "find everything that is wrong with it"),
                       ("show", "print what it amounts to, and where each value comes from")):
        part = parts.add_parser(name, help=text, description=text.capitalize() + ".",
                                epilog=f"example:\n  hpcrunner site {name} site.yaml")
        part.add_argument("site", type=Path, metavar="FILE", help="a file, or the name of a shipped site config")
    parts.add_parser("options", help="print the reference of all options",
                     description="Prints what every option means, what it allows and its default.",
                     epilog="example:\n  hpcrunner site options | less")


def _recipe(commands: argparse._SubParsersAction[_Parser]) -> None:
    command = commands.add_parser("recipe", help="make a recipe from a Dockerfile, or read an image's labels")
    parts = command.add_subparsers(dest="part", metavar="import|labels", required=True, parser_class=_Parser)
    part = parts.add_parser("import", help="turn a Dockerfile into a recipe, for review",
                            epilog="example:\n  hpcrunner recipe import Dockerfile --out recipes/mine.def.j2")
    part.add_argument("dockerfile", type=Path, metavar="DOCKERFILE")
    part.add_argument("--out", type=Path, metavar="FILE", help="write it there, not to the terminal")
    part = parts.add_parser("labels", help="print the labels of an image", epilog="example:\n"
                            "  hpcrunner recipe labels image.sif")
    part.add_argument("image", type=Path, metavar="IMAGE")


def _stock(commands: argparse._SubParsersAction[_Parser], name: str, what: str, option: str) -> None:
    command = commands.add_parser(
        name, help=f"list, measure, prune or verify the {what}",
        description=f"The {what}, which lie in the site's {option}. What is in use is never removed.")
    parts = command.add_subparsers(dest="part", metavar="list|size|prune|verify", required=True, parser_class=_Parser)
    examples = {"prune": " --older-than 30d --max-size 50GiB --dry-run", "verify": " --remove"}
    for part, text in (("list", "show all, those that were used longest ago first"), ("size", "show what they take"),
                       ("prune", "remove what was not used for long, or is too much"),
                       ("verify", "see whether each still has the content that it was made with; exit code 1 if not")):
        inner = parts.add_parser(part, help=text, description=f"{text.capitalize()}.", epilog=f"example:\n"
                                 f"  hpcrunner {name} {part}{examples.get(part, '')}")
        if part == "prune":
            inner.add_argument("--older-than", metavar="AGE", type=_duration, help="what was not used for this long")
            inner.add_argument("--max-size", metavar="SIZE", type=_bytes,
                               help="what was used longest ago, until not more than this is left")
            inner.add_argument("--dry-run", action="store_true", help="only show what would be removed")
        if part == "verify":
            inner.add_argument("--remove", action="store_true", help="remove what is wrong")
        inner.add_argument("--json", action="store_true", help="for programs")
        add_site(inner)


def _duration(text: str) -> float:
    from hpcrunner.units import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _bytes(text: str) -> int:
    from hpcrunner.units import parse_size

    try:
        return parse_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be 1 or more")
    return number
