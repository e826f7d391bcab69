"""`hpcrunner images`."""

from __future__ import annotations

import argparse
import time

from hpcrunner.cli import stock
from hpcrunner.cli.common import configuration
from hpcrunner.config.site import Site
from hpcrunner.engine.imageuse import images_in_use
from hpcrunner.images import inventory

_JUST_NOW = 600.0
"""Seconds after the last use in which a run may have found the image without its journal telling of it yet."""


def run(arguments: argparse.Namespace) -> int:
    return stock.run(arguments, ImageStock(configuration(arguments).site))


class ImageStock:
    limit = None

    def __init__(self, site: Site) -> None:
        self.where = site.image_dir
        self._site = site
        self._kept: dict[stock.Item, inventory.Kept] = {}

    def items(self) -> list[stock.Item]:
        # The images first: whoever comes to need one after that changes its time, and `remove` sees that.
        kept = inventory.images(self.where)
        use = images_in_use(self._site)
        for image in kept:
            user = use.of(image.digest)
            if inventory.is_being_built(self.where, image):
                user = "it is being built"
            elif not user and image.used > time.time() - _JUST_NOW:
                user = "somebody has just come to use it"
            self._kept[stock.Item(image.digest, image.kind, image.size, image.used, image.about, user)] = image
        return list(self._kept)

    def remove(self, item: stock.Item) -> bool:
        return inventory.remove(self._kept[item])

    def check(self, item: stock.Item) -> str:
        return inventory.problem_of(self.where, self._kept[item])
