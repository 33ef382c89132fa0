"""Claim: the conversion, which validates and hashes, is several times faster than a typical script, which does neither.
It takes at most twice as long as parsing alone, scales to several cores, and needs no more memory for more rows. A byte
of rows with actions and times takes no longer than one of rows without them.

The typical script parses each line with `json.loads` and writes one `ndarray` column per field with MDSWriter. Parsing
alone decodes each line with msgspec and discards the result. Memory is that of the command's largest process, for an
input that repeats the same rows.

    python benchmarks/conversion.py [--rows 20000] [--repetitions 3] [--gigabytes 2]
"""

import argparse
import contextlib
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

import msgspec
import numpy as np
import psutil
from streaming import MDSWriter

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.claims import Claim, in_turns, report, seconds  # noqa: E402
from convert.jsonl_to_mds import main as convert  # noqa: E402
from ugt_composer.data.history import decoder_lists, encoder_lists  # noqa: E402


def write_rows(path: Path, rows: int, seed: int = 0, with_inputs: bool = False) -> None:
    """Histories of 20 to 80 items and one to five targets, with actions and times if `with_inputs`."""
    random = np.random.default_rng(seed)
    with path.open("w") as file:
        for user in range(rows):
            items = [tuple(triple) for triple in random.integers(5, 1024, (random.integers(21, 86), 3)).tolist()]
            cut = len(items) - int(random.integers(1, 6))
            row = {"user_id": f"user-{user}", **encoder_lists(items[:cut]), **decoder_lists(items[cut:])}
            if with_inputs:
                times = (1_500_000_000 + random.integers(0, 90_000, len(items) + 1).cumsum()).tolist()
                row |= {"encoder_times": times[: cut + 1], "decoder_times": times[cut + 1 :]}
                row["encoder_actions"] = [0, *random.integers(1, 11, cut).tolist()]
            file.write(json.dumps(row) + "\n")


def usual_script(source: Path, out: Path) -> None:
    with source.open() as file:
        names = [name for name in json.loads(file.readline()) if name != "user_id"]
    columns = {"user_id": "str", **dict.fromkeys(names, "ndarray:int32")}
    with source.open() as file, MDSWriter(out=str(out), columns=columns) as writer:
        for line in file:
            row = json.loads(line)
            writer.write({name: np.asarray(v, np.int32) if name != "user_id" else v for name, v in row.items()})


def this_conversion(source: Path, out: Path) -> None:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        assert convert([str(source), "--kind", "recommend", "--out", str(out)]) == 0


def bare_parse(source: Path) -> None:
    decode = msgspec.json.Decoder().decode
    with source.open("rb") as file:
        for line in file:
            decode(line)


def run_command(source: Path, out: Path, workers: int = 1) -> int:
    """Converts with the command. Returns the peak memory of its largest process, in bytes."""
    command = [sys.executable, str(ROOT / "convert/jsonl_to_mds.py"), str(source), "--kind", "recommend"]
    command += ["--out", str(out), "--workers", str(workers)]
    process = psutil.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        with contextlib.suppress(psutil.Error):
            peak = max(peak, *(one.memory_info().rss for one in (process, *process.children())))
        time.sleep(0.02)
    assert process.returncode == 0
    shutil.rmtree(out)
    return peak


def parse_at_once(source: Path, processes: int) -> None:
    """Processes that only parse, each the whole file."""
    program = "import sys; from pathlib import Path; from benchmarks.conversion import bare_parse; "
    command = [sys.executable, "-c", program + "bare_parse(Path(sys.argv[1]))", str(source)]
    running = [subprocess.Popen(command, cwd=ROOT) for _ in range(processes)]
    assert all(process.wait() == 0 for process in running)


def repeated(source: Path, path: Path, size: int) -> Path:
    """A file of at least `size` bytes that repeats the lines of `source`."""
    data = source.read_bytes()
    with path.open("wb") as file:
        while file.tell() < size:
            file.write(data)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the input for the memory measurement")
    arguments = parser.parse_args()
    claims = []
    with tempfile.TemporaryDirectory() as folder:
        out, numbers = Path(folder), count()
        source = out / "rows.jsonl"
        write_rows(source, arguments.rows)

        def ours() -> None:
            this_conversion(source, out / f"ours-{next(numbers)}")

        def usual() -> None:
            usual_script(source, out / f"usual-{next(numbers)}")

        for name, rival, target in (
            ("a typical script", usual, 5.0),
            ("msgspec alone", lambda: bare_parse(source), 0.5),
        ):
            ratio, our_seconds, rival_seconds = in_turns(ours, rival, arguments.repetitions)
            note = f"{arguments.rows / our_seconds:,.0f} and {arguments.rows / rival_seconds:,.0f} rows/s"
            claims.append(Claim("conversion on one core: rows/s", name, 1 / ratio, target, at_least=True, note=note))
        timed = out / "timed.jsonl"
        write_rows(timed, arguments.rows, with_inputs=True)
        ratio, with_inputs, without = in_turns(
            lambda: this_conversion(timed, out / f"timed-{next(numbers)}"), ours, arguments.repetitions
        )
        megabytes = timed.stat().st_size / 1e6, source.stat().st_size / 1e6
        note = f"{megabytes[0] / with_inputs:.0f} and {megabytes[1] / without:.0f} MB/s"
        speed = megabytes[0] / megabytes[1] / ratio
        claims.append(Claim("rows with actions and times: MB/s", "rows without them", speed, 0.9, True, note))
        larger = repeated(source, out / "larger.jsonl", 16 * source.stat().st_size)
        ratio, two, one = in_turns(
            lambda: run_command(larger, out / "two", 2),
            lambda: run_command(larger, out / "one", 1),
            arguments.repetitions,
        )
        note = f"{two:.1f} s and {one:.1f} s"
        start = seconds(lambda: run_command(source, out / "small"))
        slower, _, _ = in_turns(
            lambda: parse_at_once(larger, 2), lambda: parse_at_once(larger, 1), arguments.repetitions
        )
        limit = (
            f"a sixteenth of the rows takes {start:.1f} s, mostly for the start of the process; and two processes that "
            f"only parse a file each take {slower:.2f} × the time of one."
        )
        claims.append(Claim("conversion by two workers: rows/s", "one worker", 1 / ratio, 1.8, True, note, limit))
        size = int(arguments.gigabytes * 2**30)
        peaks = [run_command(repeated(source, out / "large.jsonl", part), out / "mds") for part in (size // 8, size)]
        note = f"{peaks[0] / 1e6:.0f} MB for an eighth of it"
        what = f"conversion of {arguments.gigabytes:g} GB: MB of the largest process"
        claims.append(Claim(what, "500 MB", peaks[1] / 1e6, 500, at_least=False, note=note))
    return report(__file__, claims)


if __name__ == "__main__":
    sys.exit(main())
