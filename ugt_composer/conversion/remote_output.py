"""An output in an S3-compatible store. An object cannot be renamed, so it is complete when its index exists, which is
written last.

Parts are written under a prefix of their own beside the output. The store itself copies their shards to their final
names when all are known.
"""

import logging
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from ugt_composer.conversion.output import OUTPUT_NAMES
from ugt_composer.conversion.partition import QUARANTINE_NAME
from ugt_composer.data.integrity import INDEX_NAME, MANIFEST_NAME
from ugt_composer.errors import UserError
from ugt_composer.storage.at_once import for_each
from ugt_composer.storage.s3 import Store, StoreError
from ugt_composer.storage.s3_url import split_url

log = logging.getLogger(__name__)
LEFTOVER_AGE = 24 * 3600.0  # seconds without a new object, after which a conversion is taken for killed


class RemoteOutput:
    """The output of a conversion at s3://bucket/prefix.

    Attributes:
        work: a local folder for the files that are written once, such as the index.
        parts: the prefix of the partitions.
    """

    def __init__(self, url: str, work: Path):
        self.work = work
        self._parent, _, self._name = url.rstrip("/").rpartition("/")
        self._store, self._output = Store(self._parent), Store(url)
        self._parts_name = f".{self._name}.converting-{secrets.token_hex(4)}"
        self.parts = f"{self._parent}/{self._parts_name}"
        self._shards: list[tuple[str, int, str]] = []  # in the parts: name, bytes; name in the output

    def quarantined(self, part: str) -> list[str]:
        """The quarantined rows of a part, one entry per line."""
        return Store(self.parts).read_bytes(f"{part}/{QUARANTINE_NAME}").decode("ascii").splitlines()

    def add_shard(self, part: str, basename: str, size: int, name: str) -> None:
        """Makes a shard of a part the shard `name` of the output."""
        self._shards.append((f"{part}/{basename}", size, name))

    def end_part(self, part: str) -> None:
        """Parts are deleted together at the end."""

    def keep_quarantine(self) -> str:
        """Writes the quarantined rows beside the output, which is not written. Returns their address."""
        name = f"{self._name}.{QUARANTINE_NAME}"
        self._store.put(name, (self.work / QUARANTINE_NAME).open("rb"))
        return f"{self._parent}/{name}"

    def publish(self) -> None:
        """Replaces an earlier output. If this fails, no output is left, rather than a part of one."""
        sizes = Store(self.parts).list()
        for name, size, _ in self._shards:
            if sizes.get(name) != size:
                raise OSError(f"{self.parts}/{name}: {sizes.get(name)} bytes were written, {size} expected")
        self.remove_output()
        try:
            pairs = [(f"{self._parts_name}/{name}", f"{self._name}/{to}") for name, _, to in self._shards]
            for_each(pairs, lambda pair: self._store.copy(*pair))
            last = (MANIFEST_NAME, INDEX_NAME)
            files = sorted(path.name for path in self.work.iterdir())
            for file in (*(file for file in files if file not in last), *last):
                self._output.put(file, (self.work / file).open("rb"))
        except BaseException:
            with suppress(StoreError):
                self.remove_output()
            raise

    def remove_output(self) -> None:
        """Deletes what conversions write, first the index, without which nothing looks complete."""
        names = [name for name in self._output.list() if OUTPUT_NAMES.fullmatch(name)]
        if INDEX_NAME in names:
            self._output.delete([INDEX_NAME])
        for_each(names, lambda name: self._output.delete([name]))

    def remove_parts(self) -> None:
        store = Store(self.parts)
        for_each(store.list(), lambda name: store.delete([name]))

    def remove_leftovers(self) -> None:
        """Deletes the parts of killed conversions to this prefix. Those of a running one are newer."""
        start = f".{self._name}.converting-"
        leftovers: dict[str, dict[str, float]] = {}
        for name, age in self._store.ages(start).items():
            place = name.split("/")[0]
            if re.fullmatch(r"[0-9a-f]{8}", place.removeprefix(start)):
                leftovers.setdefault(place, {})[name] = age
        for place, ages in leftovers.items():
            if min(ages.values()) > LEFTOVER_AGE:
                for_each(ages, lambda name: self._store.delete([name]))
            else:
                log.warning(
                    "%s/%s has parts of another conversion to the same --out: it is running, or was killed less than "
                    "a day ago; a later conversion deletes them",
                    self._parent,
                    place,
                )

    def check_replaceable(self, overwrite: bool) -> None:
        """Raises UserError unless the prefix is empty or, with `overwrite`, an output of this program."""
        names = sorted(self._output.list())
        if names and not overwrite:
            raise UserError(
                f"--out {self._output.url} exists already; give --overwrite to replace it, or name another prefix"
            )
        foreign = [name for name in names if not OUTPUT_NAMES.fullmatch(name)]
        if foreign:
            raise UserError(
                f"--out {self._output.url} holds {foreign[0]}, which no conversion wrote, so it is not replaced"
            )


@contextmanager
def remote_output(url: str, overwrite: bool) -> Iterator[RemoteOutput]:
    """Yields a new output, whose parts are deleted after the block.

    Raises:
        UserError: `url` is no prefix in a store or may not be replaced.
        StoreError: the store does not answer or refuses a request.
    """
    try:
        _, prefix = split_url(url)
    except ValueError as error:
        raise UserError(f"--out {error}") from None
    if not prefix:
        raise UserError(f"--out {url} is a whole bucket; name a prefix in it, such as {url.rstrip('/')}/train")
    with TemporaryDirectory(prefix="ugt-convert-") as work:
        output = RemoteOutput(url, Path(work))
        output.check_replaceable(overwrite)
        output.remove_leftovers()
        try:
            yield output
        finally:
            with suppress(StoreError):
                output.remove_parts()
