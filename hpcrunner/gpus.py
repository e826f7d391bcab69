"""The NVIDIA GPUs of this host that jobs may be bound to, asked from NVML."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from hpcrunner.model import Gpu


def detect(environ: Mapping[str, str] = os.environ) -> list[Gpu]:
    """All cards, or the MIG instances of those that are split; empty without a driver.

    CUDA_VISIBLE_DEVICES restricts and orders them as it does for CUDA itself: by index, by UUID or by an
    unambiguous beginning of one, up to the first entry that names no device.
    https://docs.nvidia.com/cuda/cuda-c-programming-guide/index.html#env-vars
    """
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        cards = [_instances(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index))
                 for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    return [gpu for card in cards for gpu in card] if visible is None else restrict(cards, visible)


def restrict(cards: list[list[Gpu]], visible: str) -> list[Gpu]:
    """What CUDA_VISIBLE_DEVICES=`visible` leaves of the cards, each given as its MIG instances or itself."""
    chosen: list[Gpu] = []
    for entry in (part.strip() for part in visible.split(",")):
        found = _named(cards, entry)
        if not found or any(gpu in chosen for gpu in found):
            break
        chosen += found
    return chosen


def _named(cards: list[list[Gpu]], entry: str) -> list[Gpu]:
    if entry.isdigit():
        return cards[int(entry)] if int(entry) < len(cards) else []
    matches = [gpu for card in cards for gpu in card if entry and gpu.uuid.startswith(entry)]
    return matches if len(matches) == 1 else []


def _instances(nvml: Any, handle: Any) -> list[Gpu]:
    """The MIG instances of a card that is in MIG mode, otherwise the card."""
    try:
        split = nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE
    except nvml.NVMLError:
        split = False
    if not split:
        return [_gpu(nvml, handle)]
    found = []
    for index in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            found.append(_gpu(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)))
        except nvml.NVMLError:
            continue  # That slot holds no instance.
    return found


def _gpu(nvml: Any, handle: Any) -> Gpu:
    return Gpu(_text(nvml.nvmlDeviceGetUUID(handle)), int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
               _text(nvml.nvmlDeviceGetName(handle)))


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
