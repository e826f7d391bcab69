"""Builds the document out of the lines that a program prints, without believing any of them.

Every line that is a complete JSON object is merged in, every one that is an array of patch operations is applied, in
order, as the Go runner (0.9.4 to 0.14) did. What hpcrunner says of the run stands under `/studioml`: there a program
may only add.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Any, BinaryIO

from hpcrunner.metadata.patch import DEEPEST, PatchError, Tally, apply, depth, find, merge

LONGEST_LINE = 256 * 1024
"""Bytes; a longer line is no metadata."""
LARGEST = 2**20
"""Bytes of the document as JSON; a line that would make it larger is left out."""
_MOST_OPERATIONS = 1000
"""In one line."""
_OURS = "studioml"


@dataclass
class Document:
    """What was read of a program's output so far. Can be kept as JSON and gone on with."""

    value: dict[str, Any] = field(default_factory=dict)
    offset: int = 0
    """Bytes of the output that have been read."""
    is_in_long_line: bool = False
    size: int = 2
    """Bytes as JSON."""
    refused: int = 0
    """Lines that were JSON, but could not be applied."""

    def read(self, output: BinaryIO, *, is_complete: bool, seconds: float) -> None:
        """Goes on where it stopped the last time. At most `seconds` are spent; what is left is for the next time.

        A last line without its end is read when the output `is_complete`.
        """
        if output.seek(0, 2) < self.offset:
            self.offset, self.is_in_long_line = 0, False  # The program has emptied its own log.
        output.seek(self.offset)
        until = monotonic() + seconds
        for line in self._lines(output, is_complete):
            self.take(line)
            if monotonic() > until:
                break

    def take(self, line: bytes) -> bool:
        """Whether the document has changed by this line."""
        line = line.strip()
        if line[:1] + line[-1:] not in (b"{}", b"[]") or len(line) > LONGEST_LINE:
            return False
        try:
            parsed = json.loads(line, parse_constant=_refuse, parse_float=_finite)
        except (ValueError, RecursionError):
            return False
        if isinstance(parsed, list) and not all(isinstance(one, dict) and "op" in one for one in parsed):
            return False  # Just something in brackets.
        try:
            if depth(parsed) > DEEPEST:
                raise PatchError(f"more than {DEEPEST} levels deep")
            tally = Tally()
            value = self._merge(parsed, tally) if isinstance(parsed, dict) else self._patch(parsed, tally)
            if self.size + tally.grown > LARGEST:
                raise PatchError(f"the document would be larger than {LARGEST >> 20} MiB")
        except (PatchError, RecursionError):
            self.refused += 1
            return False
        self.size += tally.grown
        changed = value is not self.value
        self.value = value
        return changed

    def _merge(self, fragment: dict[str, Any], tally: Tally) -> dict[str, Any]:
        ours = fragment.get(_OURS)
        theirs = {name: value for name, value in fragment.items() if name != _OURS}
        if isinstance(ours, dict) and isinstance(there := self.value.get(_OURS, {}), dict):
            theirs[_OURS] = _new(there, ours)
        value: dict[str, Any] = merge(self.value, theirs, tally)
        return value

    def _patch(self, operations: list[Any], tally: Tally) -> Any:
        if len(operations) > _MOST_OPERATIONS:
            raise PatchError(f"more than {_MOST_OPERATIONS} operations")
        return apply(self.value, operations, _is_allowed, tally)

    def _lines(self, output: BinaryIO, is_complete: bool) -> Iterator[bytes]:
        while line := output.readline(LONGEST_LINE + 1):
            has_end = line.endswith(b"\n")
            is_long = self.is_in_long_line or len(line) > LONGEST_LINE
            if not (has_end or is_long or is_complete):
                return  # It is still being written.
            self.offset += len(line)
            self.is_in_long_line = is_long and not has_end
            if not is_long:
                yield line


def _is_allowed(document: Any, op: str, path: Sequence[str]) -> bool:
    """The document stays an object, and what is ours is only added to."""
    if not path:
        return False
    if path[0] != _OURS:
        return True
    parent = find(document, path[:-1])
    # In a list nothing is replaced by adding to it.
    return op == "add" and not (isinstance(parent, dict) and path[-1] in parent)


def _new(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, Any]:
    """Those members of `theirs` that can be merged into `ours` without changing what is there."""
    return {name: _new(ours[name], value) if name in ours else value for name, value in theirs.items()
            if name not in ours or (isinstance(value, dict) and isinstance(ours[name], dict))}


def _finite(number: str) -> float:
    if not math.isfinite(found := float(number)):
        raise ValueError(f"{number} is no number that JSON can be written with")
    return found


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
