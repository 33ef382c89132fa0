"""The demo's shop: 12 categories, 66 shelves, 528 named items.

An item's semantic ID is (category, shelf, item): L1 and L2 are numbered over the whole shop, L3 is unique to the item.
"""

from dataclasses import dataclass

import numpy as np

from ugt_composer.data.history import SemanticId
from ugt_composer.vocabulary import NUM_SPECIAL_IDS

CODEBOOK_SIZES = (32, 128, 1024)  # number of ids at L1, L2, L3, including the special ids
STYLES = ("light", "sturdy", "classic", "bright")
ITEMS_PER_SHELF = 8  # two of each style

SHELVES = {
    "Footwear": ("Trail running shoe", "Hiking boot", "Leather sandal", "Wool slipper", "Rain boot"),
    "Kitchen": ("Chef's knife", "Cast-iron pan", "Mixing bowl", "Cutting board", "Kettle", "Baking tin"),
    "Coffee and tea": ("Pour-over dripper", "Burr grinder", "Espresso cup", "Teapot", "Tea strainer"),
    "Garden": ("Pruning shears", "Watering can", "Seed tray", "Garden hose", "Work gloves", "Plant pot"),
    "Camping": ("Two-person tent", "Sleeping bag", "Camp stove", "Headlamp", "Water filter"),
    "Cycling": ("Bike helmet", "Bike light", "Pannier bag", "Hand pump", "Bike lock", "Saddle"),
    "Music": ("Ukulele", "Guitar strap", "Metronome", "Music stand", "Harmonica"),
    "Art supplies": ("Watercolour set", "Sketchbook", "Brush set", "Easel", "Ink pen", "Modelling clay"),
    "Office": ("Notebook", "Desk lamp", "Fountain pen", "Monitor stand", "Desk chair"),
    "Pets": ("Dog bed", "Cat tree", "Dog leash", "Food bowl", "Bird feeder", "Pet carrier"),
    "Games": ("Board game", "Jigsaw puzzle", "Wooden train", "Kite", "Card game"),
    "Home textiles": ("Bath towel", "Wool blanket", "Linen sheet", "Cushion", "Bath mat", "Curtain"),
}


@dataclass(frozen=True)
class Taxonomy:
    """Legend: A shelves, V items. Items are numbered from 0, shelf by shelf.

    Attributes:
        category_of_shelf: int (A,).
        shelf: int (V,), the shelf of each item.
        style: int (V,), index into `STYLES`.
        names: V readable names.
    """

    category_of_shelf: np.ndarray
    shelf: np.ndarray
    style: np.ndarray
    names: tuple[str, ...]

    def semantic_ids(self) -> list[SemanticId]:
        """(l1, l2, l3) of each item."""
        category = self.category_of_shelf[self.shelf]
        triples = np.stack([category, self.shelf, np.arange(len(self.shelf))], axis=1) + NUM_SPECIAL_IDS
        return [(l1, l2, l3) for l1, l2, l3 in triples.tolist()]


def shop() -> Taxonomy:
    shelf_names = [name for names in SHELVES.values() for name in names]
    style = np.tile(np.arange(ITEMS_PER_SHELF) % len(STYLES), len(shelf_names))
    shelf = np.repeat(np.arange(len(shelf_names)), ITEMS_PER_SHELF)
    return Taxonomy(
        category_of_shelf=np.repeat(np.arange(len(SHELVES)), [len(names) for names in SHELVES.values()]),
        shelf=shelf,
        style=style,
        names=tuple(
            f"{shelf_names[a]}, {STYLES[s]}, no. {i % ITEMS_PER_SHELF + 1}"
            for i, (a, s) in enumerate(zip(shelf.tolist(), style.tolist(), strict=True))
        ),
    )
