"""What an evaluation gives to the report, as plain data. Imports no torch."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ugt_composer.errors import UserError

RANKED_K = 10  # cut-off of the figures by group, and of the lists of users, unless lists are shorter


@dataclass(frozen=True)
class GroupResult:
    """Items of about the same popularity.

    Attributes:
        label: "most popular", …, "long tail", "no training target".
        items: of the catalogue, or known from the training data.
        training_targets: of the rows that were counted.
        targets: of the evaluated rows.
        rows: evaluated rows with such a target.
        recall, ndcg: means over these rows; None without any.
        shown: places of the recommendation lists that have one of these items.
    """

    label: str
    items: int
    training_targets: int
    targets: int
    rows: int
    recall: float | None
    ndcg: float | None
    shown: int


@dataclass(frozen=True)
class ByPopularity:
    """
    Attributes:
        k: cut-off.
        source: sentence about the rows that were counted.
        groups: most popular first.
        curves: name → (fractions of items, fractions of their targets or places), of the items in the order of their
            popularity: "training targets", "evaluation targets", "recommendations".
    """

    k: int
    source: str
    groups: list[GroupResult]
    curves: dict[str, tuple[list[float], list[float]]]


@dataclass(frozen=True)
class Listed:
    """An item of a list: its name, its semantic ID as text, and whether it is a target."""

    name: str
    semantic_id: str
    is_target: bool = False


@dataclass(frozen=True)
class User:
    """
    Attributes:
        row: where the user's row is: folder and number.
        history: the most recent items that the model read, oldest first.
        earlier: how many items came before these.
        targets: what the user took next.
        recommended: best first.
    """

    row: tuple[str, int]
    user_id: str
    history: list[Listed]
    earlier: int
    targets: list[Listed]
    recommended: list[Listed]

    @property
    def hits(self) -> int:
        return sum(item.is_target for item in self.recommended)


@dataclass(frozen=True)
class Result:
    """
    Attributes:
        model: its folder.
        about: which rows it was evaluated on, such as "all 500 rows of mds/eval".
        data: the folders, to see whether runs were evaluated on the same rows.
        metrics: of `ugt evaluate`.
        by_length: of `ugt evaluate`.
        popularity: None, and then `no_popularity` says why.
        users: empty, and then `no_users` says why.
        notes: warnings of the evaluation.
    """

    model: str
    about: str
    data: tuple[str, ...]
    rows: int
    k_values: list[int]
    metrics: dict[str, float]
    by_length: list[dict[str, Any]]
    popularity: ByPopularity | None = None
    no_popularity: str = ""
    users: list[User] = field(default_factory=list)
    no_users: str = ""
    notes: list[str] = field(default_factory=list)


def read_result(path: str) -> tuple[Path, Result]:
    """The results that `ugt evaluate --json` wrote, and the folder of the model.

    Raises:
        UserError: the file is missing, or is not such a file.
    """
    try:
        report = json.loads(Path(path).read_text("utf-8"))
        folders = tuple(folder["folder"] for folder in report["data"])
        rows, k_values = int(report["ranked_rows"]), [int(k) for k in report["k_values"]]
        metrics = {str(name): float(value) for name, value in report["metrics"].items()}
        model, by_length = Path(report["model"]["path"]), list(report["by_history_length"])
    except OSError as error:
        raise UserError(f"--json {path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"--json {path}: not written by ugt evaluate --json ({error!r})") from None
    why = f"{path} was given, which has no lists of single users; leave out --json to evaluate here"
    about = f"{rows:,} rows of {', '.join(folders)}, by {path}"
    return model, Result(
        str(model),
        about,
        folders,
        rows,
        k_values,
        metrics,
        by_length,
        no_popularity=why,
        no_users=why,
        notes=report["warnings"],
    )
