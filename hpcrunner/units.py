"""Sizes and durations as people, StudioML clients and both of its runners write them."""

from __future__ import annotations

import math
import re

_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5, "e": 6}
_SIZE = re.compile(r"([0-9][0-9,]*(?:\.[0-9]*)?|\.[0-9]+)\s*([kmgtpe]?)(?:i?b?)", re.IGNORECASE)
_SECONDS = {
    "ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3,
    "s": 1.0, "sec": 1.0, "secs": 1.0, "second": 1.0, "seconds": 1.0,
    "m": 60.0, "min": 60.0, "mins": 60.0, "minute": 60.0, "minutes": 60.0,
    "h": 3600.0, "hr": 3600.0, "hrs": 3600.0, "hour": 3600.0, "hours": 3600.0,
    "d": 86400.0, "day": 86400.0, "days": 86400.0, "w": 604800.0, "week": 604800.0, "weeks": 604800.0,
}
_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-zµ]+)\s*")
_CLOCK = re.compile(r"(?:([0-9]+)-)?([0-9]+):([0-9]{1,2})(?::([0-9]{1,2}))?")
_DAYS = re.compile(r"([0-9]+)-([0-9]+)")
_LONGEST = 10 * 366 * 86400.0


def parse_size(text: str | int | float) -> int:
    """Bytes. Units in any case, with or without `i` and `b` (`2g`, `2 GB`, `1.5GiB`), are all powers of 1024,
    as the StudioML client means them; a bare number is bytes. Raises ValueError."""
    wrong = ValueError(f"{text!r} is no size; write a number with k, M, G or T, such as 512M or 1.5GiB")
    if isinstance(text, bool):
        raise wrong
    match = _SIZE.fullmatch(text.strip() if isinstance(text, str) else repr(text))
    if not match:
        raise wrong
    # Integers stay exact; only a fraction goes through a float.
    digits = match[1].replace(",", "")
    unit = 1024 ** _POWERS[match[2].lower()]
    size = int(digits) * unit if digits.isdigit() and len(digits) < 30 else _whole(digits, unit, wrong)
    if size >= 2**63:
        raise ValueError(f"{text!r} is larger than any disk")
    return size


def _whole(digits: str, unit: int, wrong: ValueError) -> int:
    number = float(digits) * unit
    if not math.isfinite(number):
        raise wrong
    return round(number)


def format_size(size: int) -> str:
    """For people: `1.5 GiB`."""
    number = float(size)
    units = iter(("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"))
    unit = next(units)
    while abs(number) >= 1024 and unit != "EiB":
        number /= 1024
        unit = next(units)
    return f"{number:.1f}".removesuffix(".0") + f" {unit}"


def parse_duration(text: str | int | float) -> float:
    """Seconds, from `90s`, `1h30m`, `1.5h`, `20 min`, `1d 2h`, Slurm's `D-HH:MM:SS`, `D-HH`, `HH:MM:SS` and
    `MM:SS`; a bare number is seconds. Raises ValueError."""
    wrong = ValueError(f"{text!r} is no duration; write it like 90s, 20m, 1h30m or 2d")
    if isinstance(text, bool):
        raise wrong
    lowered = text.strip().lower() if isinstance(text, str) else repr(text)
    if re.fullmatch(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", lowered):
        seconds = float(lowered)
    elif clock := _CLOCK.fullmatch(lowered):
        seconds = _clock(clock)
    elif days := _DAYS.fullmatch(lowered):
        seconds = int(days[1]) * 86400.0 + int(days[2]) * 3600
    else:
        seconds, end = 0.0, 0
        for part in _PART.finditer(lowered):
            if part.start() != end or part[2] not in _SECONDS:
                raise wrong
            seconds += float(part[1]) * _SECONDS[part[2]]
            end = part.end()
        if not end or end != len(lowered):
            raise wrong
    if not seconds <= _LONGEST:
        raise ValueError(f"{text!r} is longer than ten years")
    return seconds


def _clock(match: re.Match[str]) -> float:
    days, first, second, third = match.groups()
    if days is not None or third is not None:
        hours, minutes, seconds = int(first), int(second), int(third or 0)
    else:
        hours, minutes, seconds = 0, int(first), int(second)
    return int(days or 0) * 86400.0 + hours * 3600 + minutes * 60 + seconds


def format_duration(seconds: float) -> str:
    """For people: `1h30m`, `2d3h`, `0.4s`."""
    if seconds < 60:
        return f"{seconds:.1f}".removesuffix(".0") + "s"
    rest = round(seconds)
    parts = []
    for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts)
