"""Rewards of items, from a file or from a user's own function: they choose between a model's candidates.

`catalogue/item_rewards.py` describes the file. A function, named as `my_package.my_module:my_function`, is called once
per row:

    def my_function(user_id: str, history: list[str], candidates: list[str]) -> list[float]: ...

It gets item ids, the history oldest first, and returns one value per candidate. The higher, the better.
"""

import math
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from ugt_composer.catalogue.catalogue import Catalogue
from ugt_composer.catalogue.item_rewards import ITEM, REWARD, read_item_rewards
from ugt_composer.config.user_classes import described
from ugt_composer.data.history import SemanticId
from ugt_composer.errors import UserError, nearest, where_searched

Reward = Callable[[str, list[str], list[str]], Sequence[float]]
_FUNCTION = re.compile(r"\w+(\.\w+)*:\w+")


class ItemRewards:
    """The rewards of semantic IDs: the mean over the items that share one, without those that are withheld.

    Args:
        reward: of item ids.
        name: of the file or function, for messages.
    """

    def __init__(self, reward: Reward, name: str, catalogue: Catalogue):
        self.reward, self.name, self.catalogue = reward, name, catalogue

    def of(self, user_id: str, history: Sequence[SemanticId], candidates: Sequence[SemanticId]) -> list[float]:
        """One value per candidate. History items that the catalogue lacks are left out.

        Raises:
            UserError: the user's function fails, or does not return one finite number per item.
        """
        past = [items[0].item_id for items in map(self.catalogue.items_of, history) if items]
        members = [self._members_of(ids) for ids in candidates]
        flat = [item_id for items in members for item_id in items]
        try:
            values = [float(value) for value in self.reward(user_id, past, flat)]
        except Exception as error:  # the function is the user's own
            raise UserError(f"--reward {self.name}: fails for user {user_id}: {described(error)}") from error
        if len(values) != len(flat) or not all(map(math.isfinite, values)):
            found = f"{len(values)} values" if len(values) != len(flat) else "a value that is not a finite number"
            raise UserError(
                f"--reward {self.name}: found {found} for user {user_id}; expected a finite number for each of "
                f"{len(flat)} candidates"
            )
        means, at = [], 0
        for items in members:
            means.append(math.fsum(values[at : at + len(items)]) / len(items))
            at += len(items)
        return means

    def _members_of(self, ids: SemanticId) -> list[str]:
        """The item ids of a semantic ID; those that are withheld only if all are, as those of a target may be."""
        members = [item.item_id for item in self.catalogue.items_of(ids)]
        return [item_id for item_id in members if not self.catalogue.is_withheld(item_id)] or members


def read_rewards(option: str, catalogue: Catalogue) -> ItemRewards:
    """The rewards that an option names, a file or a function.

    Raises:
        UserError: there is neither, or the file is not valid or lacks an item of the catalogue.
    """
    if _FUNCTION.fullmatch(option) and not Path(option).exists():
        return ItemRewards(_function(option), option, catalogue)
    if not Path(option).is_file():
        raise UserError(
            f"--reward {option}: no such file{where_searched(option)}; expected JSON Lines or CSV with an {ITEM} and "
            f"a {REWARD} per item, or a function such as my_package.my_module:my_function"
        )
    values = read_item_rewards("--reward", option, catalogue)
    row_of = catalogue.columns.row_of
    return ItemRewards(
        lambda user_id, history, candidates: [float(values[row_of(item)]) for item in candidates], option, catalogue
    )


def _function(option: str) -> Reward:
    module_name, _, name = option.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # the working directory, as for callbacks and metrics of the user's own
    try:
        module = import_module(module_name)
    except (Exception, SystemExit) as error:  # the module is the user's own
        raise UserError(
            f"--reward {option}: {module_name} cannot be imported from {os.getcwd()}: {described(error)}"
        ) from error
    function = vars(module).get(name)
    if not callable(function):
        functions = [other for other, value in vars(module).items() if callable(value)]
        raise UserError(f"--reward {option}: {module_name} has no function {name}; {nearest(name, functions)}")
    return function
