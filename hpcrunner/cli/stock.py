"""What `hpcrunner cache` and `hpcrunner images` have in common: list, size, prune, verify."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from hpcrunner.cli.status import printable
from hpcrunner.errors import UsageError
from hpcrunner.units import format_duration, format_size


@dataclass(frozen=True)
class Item:
    name: str
    kind: str
    """One word."""
    size: int
    """Bytes."""
    used: float
    """Unix seconds of its last use."""
    about: str
    in_use: str
    """By whom; empty if nobody needs it just now."""


class Stock(Protocol):
    where: Path

    @property
    def limit(self) -> int | None:
        """Bytes that it may hold; None if nothing bounds it."""
        ...

    def items(self) -> list[Item]:
        """Those that were used longest ago first."""
        ...

    def remove(self, item: Item) -> bool:
        """False if it is in use after all."""
        ...

    def check(self, item: Item) -> str:
        """What is wrong with it; empty if it is as it was made."""
        ...


def run(arguments: argparse.Namespace, stock: Stock) -> int:
    """Exit code 1 if `verify` found something wrong that is still there, else 0."""
    return _PARTS[arguments.part](arguments, stock)


def _list(arguments: argparse.Namespace, stock: Stock) -> int:
    items = stock.items()
    if arguments.json:
        print(json.dumps([asdict(item) for item in items], indent=1))
    elif not items:
        print(f"{stock.where} is empty")
    else:
        print(f"{'NAME':14}{'KIND':8}{'SIZE':>11}  {'LAST USE':10}{'IN USE':10}ABOUT")
        for item in items:
            age = format_duration(max(0, int(time.time() - item.used)))
            print(f"{item.name[:12]:14}{item.kind:8}{format_size(item.size):>11}  {age:10}"
                  f"{'yes' if item.in_use else '':10}{printable(item.about)}".rstrip())
    return 0


def _size(arguments: argparse.Namespace, stock: Stock) -> int:
    items = stock.items()
    size = sum(item.size for item in items)
    if arguments.json:
        print(json.dumps({"where": str(stock.where), "count": len(items), "bytes": size, "limit": stock.limit}))
    else:
        limit = "" if stock.limit is None else f" of {format_size(stock.limit)}"
        print(f"{format_size(size)}{limit} in {_entries(len(items))}: {stock.where}")
    return 0


def _prune(arguments: argparse.Namespace, stock: Stock) -> int:
    if arguments.older_than is None and arguments.max_size is None:
        raise UsageError(f"{arguments.command} prune: say what is to go: --older-than AGE, --max-size SIZE, or both")
    items = stock.items()
    left, now = sum(item.size for item in items), time.time()
    gone = []
    for item in items:
        is_old = arguments.older_than is not None and item.used < now - arguments.older_than
        is_too_much = arguments.max_size is not None and left > arguments.max_size
        if not item.in_use and (is_old or is_too_much) and (arguments.dry_run or stock.remove(item)):
            gone.append(item)
            left -= item.size
    if arguments.json:
        print(json.dumps({"removed": [asdict(item) for item in gone], "left": left, "dry_run": arguments.dry_run},
                         indent=1))
        return 0
    for item in gone:
        print(f"{'would remove' if arguments.dry_run else 'removed'} {item.name[:12]}, {format_size(item.size)}: "
              f"{printable(item.about)}")
    kept = len(items) - len(gone)
    print(f"{format_size(left)} in {_entries(kept)} {'would be' if arguments.dry_run else 'are'} left")
    if arguments.max_size is not None and left > arguments.max_size:
        print("the rest is in use: " + "; ".join(dict.fromkeys(item.in_use for item in items if item.in_use)))
    return 0


def _entries(count: int) -> str:
    return "1 entry" if count == 1 else f"{count} entries"


def _verify(arguments: argparse.Namespace, stock: Stock) -> int:
    wrong = []
    items = stock.items()
    for item in items:
        if problem := stock.check(item):
            removed = arguments.remove and not item.in_use and stock.remove(item)
            wrong.append({"name": item.name, "about": item.about, "problem": problem, "removed": removed})
    if arguments.json:
        print(json.dumps({"checked": len(items), "wrong": wrong}, indent=1))
    else:
        for found in wrong:
            stays = "in use, so it stays" if arguments.remove else "--remove removes it"
            end = "removed" if found["removed"] else stays
            print(f"{str(found['name'])[:12]} ({printable(str(found['about']))}): {found['problem']}; {end}")
        print(f"{len(items)} checked, {len(wrong)} wrong")
    return int(any(not found["removed"] for found in wrong))


_PARTS: dict[str, Callable[[argparse.Namespace, Stock], int]] = {
    "list": _list, "size": _size, "prune": _prune, "verify": _verify}
