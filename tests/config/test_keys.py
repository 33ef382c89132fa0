"""What each key declares about resuming."""

from dataclasses import dataclass

import pytest

from ugt_composer.config.checks import on_resume_of_keys
from ugt_composer.config.keys import OnResume, key
from ugt_composer.config.schema import Config


def test_every_key_declares_whether_it_may_change_on_resume():
    keys = on_resume_of_keys(Config)
    assert keys["model.d_model"] is keys["data.train.shuffle"] is OnResume.FIXED
    assert keys["optimizer.lr"] is keys["scheduler.t_warmup"] is OnResume.ON_REQUEST
    assert keys["loss.lambda_preference"] is OnResume.ON_REQUEST_UNLESS_ZERO
    assert keys["data.train.num_workers"] is keys["loggers.console"] is OnResume.FREE


def test_a_key_that_declares_nothing_is_an_error():
    @dataclass
    class Section:
        seed: int = key(1, OnResume.FREE)
        width: int = 2

    with pytest.raises(TypeError, match="width does not declare"):
        on_resume_of_keys(Section)
