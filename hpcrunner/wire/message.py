"""The client's message: one JSON object `{"experiment": ..., "config": ...}`, made by StudioML 0.0.34 to 0.0.49.

Parsing is tolerant of what clients of all ages write (numbers as strings, nulls, unknown keys) and strict about
what could do harm. A message comes from a network: nothing of it is believed before it has been checked here,
and the paths in `local`, which are of the submitter's machine, are never even read.
"""

from __future__ import annotations

import json
import math
import posixpath
import re
import shlex
from collections.abc import Mapping
from typing import Any

from hpcrunner.errors import MessageError
from hpcrunner.units import parse_duration, parse_size
from hpcrunner.wire.experiment import Artifact, Experiment, Resources, StoreConfig

LARGEST = 64 * 2**20
"""Bytes of a message; real ones have under 10 kB."""
_LARGEST_LIST = 2**20
_MOST_ITEMS = 10_000
_LONGEST_KEY = 1024
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_READ_ONLY = frozenset({"BASHOPTS", "BASH_VERSINFO", "EUID", "PPID", "SHELLOPTS", "UID"})
"""Variables that bash lets nobody set (bash(1), "Shell Variables")."""
_CARDS = frozenset({"CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES",
                    "GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK"})
"""Variables by which drivers choose cards: those of templates/sbatch.sh.j2."""
_PYTHON = re.compile(r"([23])(?:\.([0-9]{1,2}))?(?:\.[0-9]{1,3})?[a-z0-9]{0,4}")
_SHA256 = re.compile(r"(?:sha-?256:)?([0-9a-f]{64})", re.IGNORECASE)
_TAR = re.compile(r"\.(tar|tgz|tbz2?|txz)(\.[a-z0-9]+)?$", re.IGNORECASE)


class EncryptedMessageError(MessageError):
    """The message may be good, but only the holder of a key can tell."""


def parse(data: bytes) -> Experiment:
    """Raises MessageError naming every problem, and EncryptedMessageError."""
    document = _load(data)
    if isinstance(document.get("message"), dict) and "experiment" not in document:
        raise EncryptedMessageError("the message is encrypted, and this hpcrunner has no key to open it; submit "
                                    "without public_key_path")
    experiment, config = document.get("experiment"), document.get("config")
    if not isinstance(experiment, dict):
        raise MessageError('there is no object "experiment" in the message; is it one of the StudioML client\'s?')
    reader = _Reader()
    parsed = reader.experiment(experiment, config if isinstance(config, dict) else {})
    if reader.problems:
        raise MessageError("; ".join(reader.problems))
    return parsed


def peek_key(data: bytes) -> str | None:
    """The experiment's key if it can be made out at all, for reports."""
    try:
        key = _load(data)["experiment"]["key"]
    except (MessageError, KeyError, TypeError):
        return None
    if not isinstance(key, str) or not key:
        return None
    return "".join(char if char.isprintable() else "?" for char in key[:200].encode("utf-8", "replace").decode())


def safe_name(key: str) -> str:
    """The key as a file name: itself if that is harmless, else something readable with a digest.

    Different keys have different names: one that has the form of a substitute is substituted itself.
    """
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+=@-]{0,99}", key) and ".." not in key \
            and not re.fullmatch(r".*-x[0-9a-f]{12}", key):
        return key
    from hashlib import sha256

    slug = re.sub(r"[^A-Za-z0-9._-]+", "_", key).strip("._-")[:60].replace("..", "_") or "key"
    return f"{slug}-x{sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:12]}"


def _load(data: bytes) -> dict[str, Any]:
    if len(data) > LARGEST:
        raise MessageError(f"the message is larger than {LARGEST >> 20} MiB; files belong into artifacts")
    try:
        text = data.decode("utf-8-sig")
        document = json.loads(text)
    except UnicodeDecodeError as error:
        raise MessageError(f"the message is not UTF-8 text (byte {error.start})") from error
    except RecursionError:
        raise MessageError("the message is nested too deeply") from None
    except ValueError as error:
        raise MessageError(f"the message is not JSON: {error}"[:300]) from error
    if not isinstance(document, dict):
        raise MessageError("the message is not a JSON object")
    return document


class _Reader:
    """Reads fields, gathering problems (the message is refused) and warnings (something in it is left out)."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.warnings: list[str] = []

    def experiment(self, raw: dict[str, Any], config: dict[str, Any]) -> Experiment:
        artifacts = self._artifacts(raw.get("artifacts"))
        return Experiment(
            key=self._key(raw.get("key")),
            filename=self._filename(raw.get("filename"), raw.get("args"), artifacts),
            args=tuple(_unquote(word) for word in self._texts("experiment.args", raw.get("args"))),
            pythonenv=self._texts("experiment.pythonenv", raw.get("pythonenv")),
            pip=self._texts("config.pip", config.get("pip")),
            pythonver=self._python(raw.get("pythonver")),
            project=_text(raw.get("project")),
            owner=_text(raw.get("owner")),
            resources=self._resources(raw.get("resources_needed")),
            max_duration=self._duration("experiment.max_duration", raw.get("max_duration")),
            lifetime=self._duration("config.experimentLifetime", config.get("experimentLifetime")),
            time_added=self._time(raw.get("time_added")),
            artifacts=artifacts,
            env=self._env(config.get("env")),
            database=self._store(config.get("database")),
            storage=self._store(config.get("storage")),
            save_frequency=self._frequency("config.saveWorkspaceFrequency", config.get("saveWorkspaceFrequency")),
            metrics_frequency=self._frequency("config.saveMetricsFrequency", config.get("saveMetricsFrequency")),
            warnings=tuple(self.warnings),
        )

    def _key(self, value: Any) -> str:
        if not isinstance(value, str) or not value:
            self._wrong("experiment.key", value, "must be a text that is not empty")
        elif len(value) > _LONGEST_KEY or not all(char.isprintable() for char in value):
            self._wrong("experiment.key", value, f"must have at most {_LONGEST_KEY} printable characters")
        else:
            return value
        return ""

    def _filename(self, value: Any, args: Any, artifacts: Mapping[str, Artifact]) -> str | None:
        if value is None:
            if "_singularity" not in artifacts:
                self.problems.append("experiment.filename is null, and there is no image whose own script could run "
                                     "(artifact _singularity)")
            return None
        if not isinstance(value, str) or not value or not _is_plain(value):
            self._wrong("experiment.filename", value, "must be a path in the workspace")
            return None
        if value == "-m":
            if not isinstance(args, list) or not args:
                self.problems.append("experiment.args must begin with the module that `-m` runs")
            return value
        if posixpath.isabs(value) or posixpath.normpath(value).split("/")[0] in ("..", "."):
            self._wrong("experiment.filename", value, "must be the path of a file in the workspace")
        return value

    def _python(self, value: Any) -> str:
        if value is None:
            return "3"
        match = _PYTHON.fullmatch(str(value)) if isinstance(value, (str, int, float)) and value is not True else None
        if match is None:
            self._wrong("experiment.pythonver", value, "must be a Python version such as 3.11")
            return "3"
        return match[1] if match[2] is None else f"{match[1]}.{match[2]}"

    def _resources(self, value: Any) -> Resources:
        if value is None:
            return Resources()
        if not isinstance(value, dict):
            self._wrong("experiment.resources_needed", value, "must be an object")
            return Resources()
        return Resources(
            cpus=self._count(value, "cpus") or 1, gpus=self._count(value, "gpus"), ram=self._size(value, "ram"),
            hdd=self._size(value, "hdd"), gpu_mem=self._size(value, "gpuMem"), gpu_count=self._count(value, "gpuCount"))

    def _count(self, resources: dict[str, Any], name: str) -> int:
        value = resources.get(name)
        if value is None or value == "":
            return 0
        try:
            number = float(value) if not isinstance(value, bool) else math.nan
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not (0 <= number < 2**31 and number == int(number)):
            self._wrong(f"experiment.resources_needed.{name}", value, "must be a whole number, 0 or more")
            return 0
        return int(number)

    def _size(self, resources: dict[str, Any], name: str) -> int:
        value = resources.get(name)
        if value is None or value == "":
            return 0
        try:
            return parse_size(value if isinstance(value, (str, int, float)) else "")
        except ValueError:
            self._wrong(f"experiment.resources_needed.{name}", value, "must be a size such as 512M or 2 GiB")
            return 0

    def _duration(self, path: str, value: Any) -> float | None:
        if value is None:
            return None
        try:
            seconds = parse_duration(value if isinstance(value, (str, int, float)) else "")
        except ValueError:
            if str(value).strip().startswith("-"):
                self._wrong(path, value, "must not be negative")
            else:
                self.warnings.append(f"{path} holds {_shown(value)}, which is no duration (such as 90s, 1h30m, 2d); "
                                     "it is left out")
            return None
        if seconds == 0:
            self.warnings.append(f"{path} is zero, which is taken for no limit")
            return None
        return seconds

    def _frequency(self, path: str, value: Any) -> float | None:
        """Zero is the client's own word for "never"."""
        return None if value in (0, "0", "0s", "0m", "0h") else self._duration(path, value)

    def _time(self, value: Any) -> float | None:
        """Unix seconds; the runners before us ignored what can't be a date, and so do we."""
        try:
            seconds = float(value) if not isinstance(value, bool) else 0.0
        except (TypeError, ValueError, OverflowError):
            return None
        return seconds if math.isfinite(seconds) and 10 < seconds < 1e11 else None

    def _texts(self, path: str, value: Any) -> tuple[str, ...]:
        if value is None:
            return ()
        if not isinstance(value, list) or any(isinstance(item, (list, dict)) for item in value):
            self._wrong(path, value, "must be a list of texts")
            return ()
        texts = tuple(str(item) for item in value if item is not None)
        if len(texts) > _MOST_ITEMS or sum(map(len, texts)) > _LARGEST_LIST:
            self.problems.append(f"{path} is longer than {_MOST_ITEMS} items or {_LARGEST_LIST >> 20} MiB")
        for text in texts:
            if not _is_plain(text):
                self._wrong(path, text, "must hold neither NUL nor broken Unicode")
        return texts

    def _env(self, value: Any) -> dict[str, str]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            self._wrong("config.env", value, "must be an object")
            return {}
        env = {}
        for name, item in value.items():
            if item is None:
                continue
            if not _NAME.fullmatch(name):
                self.warnings.append(f"config.env: {_shown(name)} is no name of a variable; it is left out")
            elif name in _READ_ONLY:
                self.warnings.append(f"config.env.{name}: bash keeps this variable to itself; it is left out")
            elif name in _CARDS:
                self.warnings.append(f"config.env.{name}: which GPUs a job sees is not its own choice; it is left out")
            elif not _is_plain(str(item)):
                self.warnings.append(f"config.env.{name}: no variable can hold NUL or broken Unicode; it is left out")
            else:
                env[name] = str(item)
        return env

    def _store(self, value: Any) -> StoreConfig | None:
        if not isinstance(value, dict):
            return None
        credentials = value.get("credentials")
        return StoreConfig(_text(value.get("type")) or "", _text(value.get("endpoint")), _text(value.get("bucket")),
                           credentials if isinstance(credentials, dict) else None)

    def _artifacts(self, value: Any) -> dict[str, Artifact]:
        if value is None:
            return {}
        if not isinstance(value, dict) or len(value) > _MOST_ITEMS:
            self._wrong("experiment.artifacts", value, "must be an object")
            return {}
        found = {}
        for tag, raw in value.items():
            if not _is_file_name(tag):
                self._wrong("experiment.artifacts", tag, "must name each artifact by a plain file name")
            elif raw is not None and not isinstance(raw, dict):
                self._wrong(f"experiment.artifacts.{tag}", raw, "must be an object")
            elif raw is not None:
                found[tag] = self._artifact(tag, raw)
        return found

    def _artifact(self, tag: str, raw: dict[str, Any]) -> Artifact:
        location = _text(raw.get("qualified")) or _text(raw.get("url"))
        key = _text(raw.get("key"))
        if location is not None and not _is_plain(location):
            self._wrong(f"experiment.artifacts.{tag}", location, "must have a location without NUL or broken Unicode")
        unpack = raw.get("unpack")
        credentials = raw.get("credentials")
        return Artifact(
            tag, mutable=bool(raw.get("mutable")),
            # null in messages of a grid search and of --reuse, whose objects are tars like all others.
            unpack=bool(_TAR.search(key or location or "")) if unpack is None else bool(unpack),
            location=location, key=key, bucket=_text(raw.get("bucket")),
            credentials=credentials if isinstance(credentials, dict) else None, sha256=self._hash(tag, raw.get("hash")),
            save_frequency=self._frequency(f"experiment.artifacts.{tag}.saveFrequency", raw.get("saveFrequency")))

    def _hash(self, tag: str, value: Any) -> str:
        """No client writes one, so nothing says in which form it would be: only what can be no other is taken."""
        match = _SHA256.fullmatch(value.strip()) if isinstance(value, str) else None
        if match is None and value:
            self.warnings.append(f"experiment.artifacts.{tag}.hash holds {_shown(value)}, which is no SHA-256 in "
                                 "hexadecimal; it is not checked")
        return match[1].lower() if match else ""

    def _wrong(self, path: str, value: Any, right: str) -> None:
        self.problems.append(f"{path} holds {_shown(value)}; it {right}")


def _unquote(word: str) -> str:
    """Takes off the quotes that the client put round an argument for a shell; once, and only if they are quotes."""
    try:
        words = shlex.split(word)
    except ValueError:
        return word
    return words[0] if len(words) == 1 else word


def _is_file_name(text: str) -> bool:
    """One that is safe to use, and short enough for us to make others of it."""
    return (text not in ("", ".", "..") and "/" not in text and text.isprintable()
            and len(text.encode("utf-8", "replace")) <= 200)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _is_plain(text: str) -> bool:
    """Without NUL, which no path or argument can hold, and without half characters, which can't be written."""
    return "\0" not in text and not any("\ud800" <= char <= "\udfff" for char in text)


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
