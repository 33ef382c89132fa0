"""What gives semantic IDs to items that are added later: the model of the texts, and the centres of each level.

It is stored in a file beside the bundle, which has its hash; so are the vectors of the items that the bundle has.

I items of the bundle, n added items, d dimensions.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ugt_composer.errors import UserError
from ugt_composer.importing.clustering import Quantiser
from ugt_composer.importing.item_vectors import mean_of_nearest
from ugt_composer.importing.texts import TextModel
from ugt_composer.storage.hashed_file import file_hash

FILE, VECTORS = "semantic_ids.npz", "item_vectors.npy"
ALGORITHM = "xxh3_128"
TEXTS = "texts"


@dataclass(frozen=True)
class View:
    """A source of the items' vectors: their texts, or interactions.

    Attributes:
        dimensions: columns of the joined vectors that come from it.
        weight: of its columns, before the root is taken.
        known: bool (I,), whether it has a vector of the item; other items have that of similar ones.
    """

    dimensions: int
    weight: float
    known: np.ndarray


@dataclass(frozen=True)
class Assigner:
    """
    Attributes:
        quantiser: gives the first two levels.
        views: by name, the sources that the vectors were joined from; none if the vectors were given by a file.
        texts: None if no view is made of texts.
    """

    quantiser: Quantiser
    views: Mapping[str, View]
    texts: TextModel | None

    def vectors_of_texts(self, texts: pl.Series, vectors: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Vectors of added items, float32 (n, d), and which of them have no known word, bool (n,).

        As for the items that the ids were made of, the part of a vector that is not made of texts is the mean of the
        most similar items' parts, and an item without a known word gets the vector of a random item.

        Args:
            vectors: (I, d), of the bundle's items.
        """
        assert self.texts is not None
        made = self.texts.vectors(texts)
        parts = []
        words = self._part(vectors, TEXTS) * self.views[TEXTS].known[:, None]
        for name, view in self.views.items():
            part = made
            if name != TEXTS:
                present = np.flatnonzero(view.known)
                part = np.zeros((len(made), view.dimensions), np.float32)
                if len(present):
                    part = mean_of_nearest(made, words[present], self._part(vectors, name)[present])
            parts.append(part * np.sqrt(view.weight))
        joined = np.concatenate(parts, axis=1).astype(np.float32)
        unknown = ~(made != 0).any(axis=1)
        any_known = np.flatnonzero(np.any([view.known for view in self.views.values()], axis=0))
        if len(any_known):
            joined[unknown] = vectors[np.random.default_rng(seed).choice(any_known, int(unknown.sum()))]
        return joined, unknown

    def _part(self, vectors: np.ndarray, name: str) -> np.ndarray:
        """The columns (I, d of the view) that come from a view, of length 1."""
        names = list(self.views)
        start = sum(self.views[before].dimensions for before in names[: names.index(name)])
        view = self.views[name]
        return vectors[:, start : start + view.dimensions] / np.sqrt(view.weight)

    def save(self, folder: Path) -> dict[str, str]:
        """Writes FILE beside VECTORS, which is there already. Returns the names and hashes of both, for the bundle."""
        arrays: dict[str, Any] = {"exponent": np.int64(self.quantiser.exponent)}
        for level, centres in enumerate(self.quantiser.centres, start=1):
            arrays[f"centres_{level}"] = centres.astype(np.int32)
        for name, view in self.views.items():
            arrays |= {f"{name} dimensions": np.int64(view.dimensions), f"{name} weight": np.float64(view.weight)}
            arrays[f"{name} known"] = np.packbits(view.known)
        if self.texts is not None:
            arrays["words"] = np.frombuffer("\n".join(self.texts.words).encode(), np.uint8)
            arrays |= {"idf": self.texts.idf, "projection": self.texts.projection.astype(np.int32)}
        np.savez(folder / FILE, **arrays)
        return {"file": FILE, "hash": _hash(folder / FILE), "vectors": VECTORS, "vectors_hash": _hash(folder / VECTORS)}


def read_assigner(bundle: Path, facts: Mapping[str, str], names: list[str], items: int) -> tuple[Assigner, np.ndarray]:
    """The assigner of a bundle, and the vectors (I, d) of its items.

    Args:
        bundle: the path of the bundle.
        facts: what `Assigner.save` returned.
        names: of the views, in the order of their columns.
        items: I.

    Raises:
        UserError: a file is missing, or is not the one that was written with the bundle.
    """
    files = [bundle.with_name(facts["file"]), bundle.with_name(facts["vectors"])]
    for path, recorded in zip(files, (facts["hash"], facts["vectors_hash"]), strict=True):
        if not path.is_file():
            raise UserError(
                f"--extend {bundle}: {path} is missing, which new items get their ids from; copy it from the folder "
                "that the ids were made in"
            )
        if _hash(path) != recorded:
            raise UserError(
                f"--extend {bundle}: {path} was changed since the ids were made, or is corrupted; restore the file "
                "that was written with them"
            )
    with np.load(files[0], allow_pickle=False) as arrays:
        centres = [arrays[name].astype(np.float64) for name in sorted(arrays.files) if name.startswith("centres_")]
        views = {
            name: View(
                int(arrays[f"{name} dimensions"]),
                float(arrays[f"{name} weight"]),
                np.unpackbits(arrays[f"{name} known"], count=items).astype(bool),
            )
            for name in names
        }
        texts = None
        if "words" in arrays.files:
            words = tuple(arrays["words"].tobytes().decode().split("\n")) if arrays["words"].size else ()
            texts = TextModel(words, arrays["idf"], arrays["projection"].astype(np.float64))
        quantiser = Quantiser(int(arrays["exponent"]), tuple(centres))
    return Assigner(quantiser, views, texts), np.load(files[1], allow_pickle=False)


def _hash(path: Path) -> str:
    return f"{ALGORITHM}:{file_hash(ALGORITHM, path)}"
