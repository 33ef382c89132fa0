"""Rows that cannot be read or have an invalid value: counted, described, and refused unless they are to be skipped."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ugt_composer.errors import UserError
from ugt_composer.importing.inputs import Part

NAMED_LINES = 5


@dataclass
class Damage:
    """Such rows: how many, the places of the first ones in the order of the files, and what is wrong with the first."""

    count: int = 0
    places: list[tuple[Part, int]] = field(default_factory=list)
    first: str | None = None

    def refuse(self, skip: bool, others: int) -> None:
        """Raises UserError for damaged rows, unless they are to be skipped and fewer than the others.

        Args:
            others: how many rows could be read.
        """
        if self.count > others and skip:
            raise UserError(
                f"{self.first}; {self.count:,} of {self.count + others:,} rows are damaged, which are too many to "
                "skip: the file seems to have another format"
            )
        if self.count and not skip:
            several = len({part.path for part, _ in self.places}) > 1
            places = ", ".join(f"{part.path.name}:{number}" if several else str(number) for part, number in self.places)
            lines = f": {places}{' …' if len(self.places) == NAMED_LINES < self.count else ''}"
            raise UserError(
                f"{self.first}; fix it, or skip such rows with --on-error skip ({self.count:,} of "
                f"{self.count + others:,} rows{lines if self.count > 1 else ''})"
            )

    def refuse_most(self, skip: bool, others: int) -> None:
        """Like `refuse`, if they are more than the others: the file has another format, so that its values say nothing.
        Fewer are refused later, together with rows that have an invalid value."""
        if self.count > others:
            self.refuse(skip, others)

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence about the rows that were skipped, if there are any."""
        return (f"skipped damaged rows: {self.count:,}; the first: {self.first}",) if self.count else ()

    def merge(self, other: "Damage") -> None:
        """Adds rows that come after these."""
        self.count += other.count
        self.first = self.first or other.first
        self.places = [*self.places, *other.places][:NAMED_LINES]

    def with_others(self, others: "Damage", parts: Sequence[Part]) -> "Damage":
        """These and other rows, which can be between these.

        Args:
            parts: all files.
        """
        number_of = {part.path: number for number, part in enumerate(parts)}

        def order(place: tuple[Part, int]) -> tuple[int, int]:
            return number_of[place[0].path], place[1]

        first = min((one for one in (self, others) if one.count), key=lambda one: order(one.places[0]), default=self)
        places = sorted([*self.places, *others.places], key=order)[:NAMED_LINES]
        return Damage(self.count + others.count, places, first.first)

    def add(self, part: Part, number: int, problem: str) -> None:
        self.count += 1
        if self.first is None:
            self.first = f"{part.path}, {part.unit} {number}: {problem}"
        if len(self.places) < NAMED_LINES:
            self.places.append((part, number))
