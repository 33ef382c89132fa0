"""Faults in Spark's executors: their Python imports a module that wraps the conversion of a partition."""

import json
import os
from pathlib import Path

# Imported at the start of each Python process with FOLDER in its PYTHONPATH.
MODULE = """
import json, os, time
from pathlib import Path
import ugt_composer.conversion.partition as partition

folder, convert = Path(__file__).parent, partition.convert_partition

def with_faults(pieces, part, *rest):
    faults = json.loads((folder / "faults.json").read_text())
    result = convert(pieces, part, *rest)
    number = int(part.name.removeprefix("part-").partition(".")[0])
    attempts = folder / faults["name"] / str(number)
    attempts.mkdir(parents=True, exist_ok=True)
    (attempts / part.name).touch()
    attempt = len(os.listdir(attempts))
    time.sleep(faults["seconds"])
    while faults["hold_from"] is not None and number >= faults["hold_from"] and not (attempts.parent / "go").exists():
        time.sleep(0.05)
    if number in faults["fail"] or attempt == 1 and number in faults["fail_once"]:
        raise OSError(28, "No space left on device")
    while attempt == 1 and number in faults["hang_once"] and not (attempts.parent / "go").exists():
        time.sleep(0.05)
    return result

partition.convert_partition = with_faults
"""


class Faults:
    """Faults of the next conversions.

    Attributes:
        folder: for the executors' PYTHONPATH.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(MODULE)

    def inject(
        self,
        name: str,
        seconds: float = 0.0,
        fail: tuple[int, ...] = (),
        fail_once: tuple[int, ...] = (),
        hang_once: tuple[int, ...] = (),
        hold_from: int | None = None,
    ) -> None:
        """Sets the faults.

        Args:
            name: of the conversion whose attempts are counted from now on.
            seconds: that each attempt takes longer.
            hold_from: this partition and later ones do not end before `release`.
            fail, fail_once: partitions that fail always, or in their first attempt.
            hang_once: partitions whose first attempt does not end before `release`.
        """
        self._name = name
        text = json.dumps(
            {
                **{"name": name, "seconds": seconds, "hold_from": hold_from},
                **{"fail": fail, "fail_once": fail_once, "hang_once": hang_once},
            }
        )
        (self.folder / "new.json").write_text(text)
        os.replace(self.folder / "new.json", self.folder / "faults.json")

    def release(self) -> None:
        (self.folder / self._name).mkdir(exist_ok=True)
        (self.folder / self._name / "go").touch()

    def attempts(self) -> dict[int, int]:
        """How many attempts at each partition have begun."""
        folder = self.folder / self._name
        numbered = [path for path in folder.iterdir() if path.is_dir()] if folder.exists() else []
        return {int(path.name): len(list(path.iterdir())) for path in numbered}
