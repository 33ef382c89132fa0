"""The environment variable that switches the kernels off."""

import subprocess
import sys

import pytest

from tests.rehearsal.driver import environment

SHOW = "from ugt_composer import kernels; print(kernels._ARE_ENABLED, kernels.are_expected())"


@pytest.mark.parametrize(("value", "printed"), [("0", "False False"), ("off", "True True")])
def test_0_switches_the_kernels_off_and_other_words_are_warned_about(value, printed):
    command = [sys.executable, "-c", SHOW]
    run = subprocess.run(command, env=environment(UGT_KERNELS=value), capture_output=True, text=True, check=True)
    assert run.stdout.strip() == printed
    assert ("UGT_KERNELS=off is neither 0 nor 1" in run.stderr) == (value == "off")
