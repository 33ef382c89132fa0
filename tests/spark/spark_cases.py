"""What tests with Spark need: Java, or a reason to skip them; sessions of two cores."""

import os
import shutil

import pytest

needs_java = pytest.mark.skipif(
    shutil.which(f"{os.environ['JAVA_HOME']}/bin/java" if os.environ.get("JAVA_HOME") else "java") is None,
    reason="Spark needs Java, which is not installed",
)
MASTER = "local[2]"
