"""The catalogue that the rows of a conversion are checked against: the one that --catalogue names, or one beside them.

The folder of shards records its fingerprint, so that training refuses shards of one import with the catalogue of
another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.catalogue.id_set import SemanticIdSet
from ugt_composer.catalogue.outside import ItemCounts
from ugt_composer.conversion.settings import Settings
from ugt_composer.errors import UserError
from ugt_composer.jsonl.sources import Source, files_beside
from ugt_composer.storage.remote_files import named_file

CATALOGUE_NAME = "catalogue.jsonl"  # as the importer and the demo name it
NO_CATALOGUE = "none"  # --catalogue none


@dataclass(frozen=True)
class KnownItems:
    """The catalogue of a conversion.

    Attributes:
        catalogue: its items.
        found: whether it was found beside the input; otherwise --catalogue names it.
    """

    catalogue: Catalogue
    found: bool

    @cached_property
    def ids(self) -> SemanticIdSet:
        return SemanticIdSet(self.catalogue.triples)

    def fingerprint(self, counts: ItemCounts) -> str | None:
        """What the shards record. None if a catalogue that merely lies beside the rows lacks an item of them."""
        return None if self.found and counts.outside.total() else self.catalogue.fingerprint

    def problem(self, counts: ItemCounts, first: str | None, settings: Settings) -> str | None:
        """A warning if the catalogue lacks items; None if it has all.

        Args:
            first: file, line and kind of the first item that it lacks.

        Raises:
            UserError: it lacks a larger fraction of them than the settings allow, and --catalogue names it.
        """
        if not counts.outside.total():
            return None
        what = f"{self.catalogue.source} lacks {counts}, first in {first}"
        if self.found:
            return (
                f"{what}; it was found beside the input, so its fingerprint is not recorded. Name the catalogue that "
                f"was made with these rows by --catalogue, or use --catalogue {NO_CATALOGUE}"
            )
        if counts.above(settings.max_fraction_outside_catalogue):
            raise UserError(
                f"{what}: more than --max-fraction-outside-catalogue {settings.max_fraction_outside_catalogue:g}, so "
                "the rows seem to come from another import than the catalogue; name the catalogue that was made with "
                "these rows, import the data again, or raise that fraction; nothing was written"
            )
        return f"{what}: they cannot be recommended"


def known_items(option: str | None, sources: Sequence[Source]) -> tuple[KnownItems | None, str | None]:
    """The catalogue, and a warning about one beside the input that is not used; None where there is none.

    Args:
        option: as typed by the user: a file, or "none"; None looks beside the input.

    Raises:
        UserError: the file that the option names cannot be read as a catalogue.
    """
    if option == NO_CATALOGUE:
        return None, None
    if option is not None:
        try:
            return KnownItems(Catalogue.load(named_file(option)), found=False), None
        except UserError as error:
            raise UserError(f"--catalogue {error}") from None
    found = files_beside(sources, CATALOGUE_NAME)
    if not found:
        return None, None
    if len(found) > 1:
        names = " and ".join(map(str, found[:2]))
        return None, (
            f"{names}: no catalogue is used, because there is more than one beside the input; name one by --catalogue"
        )
    try:
        return KnownItems(Catalogue.load(found[0]), found=True), None
    except UserError as error:
        return None, f"{error}; the file beside the input is not used, name the catalogue by --catalogue"
