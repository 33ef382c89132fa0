"""The options that choose where a program runs: on this machine or on Spark."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ugt_composer.errors import UserError
from ugt_composer.spark.session import spark_session

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

LOCAL, SPARK = "local", "spark"  # of --engine


def add_engine_options(parser: argparse.ArgumentParser, folders: str) -> None:
    """Args:
    folders: the options whose folders on disks Spark's machines share, for the help.
    """
    parser.add_argument(
        "--engine",
        choices=(LOCAL, SPARK),
        default=LOCAL,
        help=f"{LOCAL}: this machine; {SPARK}: Apache Spark, whose machines share {folders}, if not in S3; the "
        f"output is the same (default {LOCAL})",
    )
    parser.add_argument(
        "--master",
        metavar="URL",
        help=f"with {SPARK}: local[N], spark://HOST:PORT, ... (default: that of spark-submit or of Spark's "
        "configuration, otherwise all cores of this machine)",
    )


@contextmanager
def engine_session(args: argparse.Namespace, name: str, instead: str) -> "Iterator[SparkSession | None]":
    """Yields a session of the master that the options name; None for this machine.

    Args:
        name: the application's name.
        instead: part of a sentence: what --master could be wanted for on this machine.

    Raises:
        UserError: --master without Spark, or what `spark_session` raises.
    """
    if args.engine == LOCAL:
        if args.master is not None:
            raise UserError(f"--master {args.master} is for --engine {SPARK}{instead}")
        yield None
        return
    with spark_session(args.master, name) as session:
        yield session
