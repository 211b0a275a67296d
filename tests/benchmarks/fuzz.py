"""Damages the files that the project reads and checks that each is read correctly or refused in one line.

    python tests/benchmarks/fuzz.py   1,000 damaged files for every reader
    python tests/benchmarks/fuzz.py --cases 10000 --seconds 600    more, but at most ten minutes for each reader
    python tests/benchmarks/fuzz.py --readers csv votes            some readers only

The test suite runs the same checks with fewer cases. Prints one line per reader: cases, files read, files refused.
"""

import argparse
import collections
import contextlib
import csv
import gzip
import io
import re
import shutil
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import fer2013
import utils

FACES = np.random.default_rng(0).integers(0, 256, (14, utils.IMAGE_SIZE**2), dtype=np.uint8)
EMOTION_IDS = [0, 3, 1, 4, 2, 5, 6] * 2
USAGES = ["Training"] * 8 + ["PublicTest"] * 4 + ["PrivateTest"] * 2
LONGEST_MESSAGE = 700  # Characters.
REFUSALS = (ValueError, OSError)  # What cli.run_script turns into one line.

# ---------------------------------------------------------------------------------------------------------------------
# Damage
# ---------------------------------------------------------------------------------------------------------------------

TOKENS = [
    b"0", b"5", b"10", b"  ", b",", b"\n", b"\r", b'"', b"'", b" ", b"\t", b"\0", b";", b"-1", b"256", b"1e3", b"nan",
    b"[", b"}", b"\xff",
]  # fmt: skip
PHASES = (Phase.generate, Phase.shrink)
EDITS = st.lists(
    st.tuples(
        st.sampled_from(["replace", "insert", "delete", "cut", "repeat", "flip", "digit", "digit"]),
        st.integers(0, 2**20),  # Where: an offset, or the number of a separator.
        st.booleans(),  # At a separator, where most rules of a format apply.
        st.sampled_from(TOKENS) | st.binary(min_size=1, max_size=4),
    ),
    min_size=1,
    max_size=3,
)


def damage(content, edits):
    """Returns a copy of bytes with some edits."""
    for kind, place, at_separator, token in edits:
        separators = [i for i, byte in enumerate(content[:100_000]) if byte in b",\n:"] if at_separator else []
        i = separators[place % len(separators)] if separators else place % max(1, len(content))
        if kind == "replace":
            content = content[:i] + token + content[i + len(token) :]
        elif kind == "insert":
            content = content[:i] + token + content[i:]
        elif kind == "delete":
            content = content[:i] + content[i + len(token) :]
        elif kind == "cut":
            content = content[:i]
        elif kind == "repeat":
            content = content[:i] + content[max(0, i - 20 * len(token)) :]
        elif kind == "digit":  # Many files stay valid, with another value.
            content = content[:i] + re.sub(rb"\d", b"%d" % (place % 10), content[i:], count=1)
        elif i < len(content):
            content = content[:i] + bytes([content[i] ^ 1 << place % 8]) + content[i + 1 :]
    return content


# ---------------------------------------------------------------------------------------------------------------------
# Readers: each yields a function that takes edits, and returns whether the damaged file was read
# ---------------------------------------------------------------------------------------------------------------------


def csv_content():
    rows = zip(EMOTION_IDS, FACES, USAGES, strict=True)
    lines = [f"{emotion},{' '.join(map(str, face))},{usage}\n" for emotion, face, usage in rows]
    return ("emotion,pixels,Usage\n" + "".join(lines)).encode()


def votes_content():
    """Returns votes of which seven in ten are for the label."""
    columns = (*fer2013.VOTE_COLUMNS, *fer2013.OTHER_VOTE_COLUMNS)
    lines = [f"Usage,Image name,{','.join(columns)}\n"]
    for row, (emotion, usage) in enumerate(zip(EMOTION_IDS, USAGES, strict=True)):
        votes = [7 if i == emotion else 3 * (i == 7 + row % 3) for i in range(len(columns))]
        lines.append(f"{usage},fer{row}.png,{','.join(map(str, votes))}\n")
    return "".join(lines).encode()


def parse(content, columns):
    """Returns the rows of a CSV as lists of fields, with Python's csv module alone."""
    header, *rows = csv.reader(io.StringIO(content.decode("utf-8", "replace"), newline=""), skipinitialspace=True)
    header = [name.strip("\ufeff ") for name in header]
    rows = [row for row in rows if any(field.strip() for field in row)]
    return [[row[header.index(column)].strip() for column in columns] for row in rows]


def refused(read):
    """Calls a reader. Returns None and its message if it refuses, or its result and an empty message."""
    try:
        return read(), ""
    except REFUSALS as error:
        message = str(error)
        assert 0 < len(message) < LONGEST_MESSAGE and "\n" not in message and "\0" not in message, repr(message)
        return None, message


@contextlib.contextmanager
def csv_reader(folder):
    path, content = folder / "fer2013.csv", csv_content()

    def check(edits):
        damaged = damage(content, edits)
        path.write_bytes(damaged)
        result, _ = refused(lambda: fer2013.read(path))
        if result is not None:
            rows = parse(damaged, fer2013.COLUMNS)
            assert result.faces.reshape(len(rows), -1).tolist() == [
                list(map(int, pixels.split())) for _, pixels, _ in rows
            ]
            assert result.emotions.tolist() == [int(emotion) for emotion, _, _ in rows]
            assert [list(fer2013.SPLITS.values())[usage] for usage in result.usages] == [usage for _, _, usage in rows]
        return result is not None

    yield check


@contextlib.contextmanager
def archive_reader(folder):
    content = csv_content()
    with zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("fer2013.csv", content)
    with tarfile.open(folder / "a.tar.gz", "w:gz") as archive:
        entry = tarfile.TarInfo("fer2013/fer2013.csv")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    packed = [gzip.compress(content, mtime=0), (folder / "a.zip").read_bytes(), (folder / "a.tar.gz").read_bytes()]
    path = folder / "damaged"

    def check(edits):
        path.write_bytes(damage(packed[edits[0][1] % len(packed)], edits))
        result, _ = refused(lambda: fer2013.read(path))
        assert result is None or np.array_equal(result.faces.reshape(-1, utils.IMAGE_SIZE**2), FACES)
        return result is not None

    yield check


@contextlib.contextmanager
def votes_reader(folder):
    path, content = folder / "votes.csv", votes_content()
    (folder / "fer2013.csv").write_bytes(csv_content())
    data = fer2013.read(folder / "fer2013.csv")

    def check(edits):
        damaged = damage(content, edits)
        path.write_bytes(damaged)
        result, _ = refused(lambda: data.read_votes(path).select("train", 7))
        if result is None:
            return False
        rows = parse(damaged, (*fer2013.VOTE_COLUMNS, *fer2013.OTHER_VOTE_COLUMNS))[: USAGES.count("Training")]
        for votes, weight, consensus, row in zip(*result, [list(map(int, row)) for row in rows], strict=True):
            kept = row[:7]
            assert np.allclose(votes, np.array(kept) / max(1, sum(kept)))
            assert np.isclose(weight, sum(kept) / max(1, sum(row)))
            assert consensus == (kept.index(max(kept)) if 2 * max(kept) > sum(row) else -1)
        return True

    yield check


@contextlib.contextmanager
def description_reader(folder):
    content = (utils.DEFAULT_MODEL / "model.json").read_bytes()
    path = folder / "model.json"

    def check(edits):
        path.write_bytes(damage(content, edits))
        description, _ = refused(lambda: utils._read_description(path))
        if description:
            assert tuple(utils.EMOTIONS[i] for i in description["fer2013_ids"]) == tuple(description["classes"])
            assert all(0 < description["temperatures"][head] < float("inf") for head in description["heads"])
            assert np.isfinite(description["bias"]).all() and len(description["bias"]) == len(description["classes"])
        return description is not None

    yield check


@contextlib.contextmanager
def network_reader(folder):
    shutil.copy(utils.DEFAULT_MODEL / "model.json", folder)
    content = (utils.DEFAULT_MODEL / "model.tflite").read_bytes()

    def check(edits):
        damaged = damage(content, edits)
        (folder / "model.tflite").write_bytes(damaged)
        model, _ = refused(lambda: utils.load_emotion_model(folder))
        assert model is None or damaged == content
        return model is not None

    yield check


@contextlib.contextmanager
def log_reader(folder):
    import emotion_log

    paths = [folder / "log.csv", folder / "log.jsonl"]
    for path in paths:
        with emotion_log.EmotionLog(path, utils.EMOTIONS, files=["k\u00f6ln.mp4"], utc_column=True) as log:
            for number in range(6):
                probabilities = dict(zip(utils.EMOTIONS, [0.7] + 6 * [0.05], strict=True))
                face = utils.Face((10, 20, 48, 48), utils.EMOTIONS[number], 0.7, probabilities, track=1 + number % 2)
                log.write(number, number / 25, "a.mp4", [face] * (number % 3), "2026-01-01T00:00:00Z")
    contents = [path.read_bytes() for path in paths]

    def check(edits):
        choice = edits[0][1] % 2
        paths[choice].write_bytes(damage(contents[choice], edits))
        rows, _ = refused(lambda: emotion_log.read_log(paths[choice]))
        if rows is not None:
            assert emotion_log.summarize(rows)
            for _, seconds, probabilities in emotion_log.timeline_curves(rows)[0]:
                assert len(seconds) == len(probabilities) and not np.isnan(probabilities).any()
        return rows is not None

    yield check


@contextlib.contextmanager
def state_reader(folder):
    import checkpoint

    path, weights = folder / "state.npz", [np.arange(12.0).reshape(3, 4), np.zeros(3)]
    checkpoint.save_state(path, {"epochs": 2}, [{"epoch": 1}], weights, weights[:1])
    content = path.read_bytes()

    def check(edits):
        path.write_bytes(damage(content, edits))
        state, _ = refused(lambda: checkpoint.load_state(path))
        if state:
            assert state[:2] == ({"epochs": 2}, [{"epoch": 1}])
            assert all(map(np.array_equal, state[2], weights)) and np.array_equal(state[3][0], weights[0])
        return state is not None

    yield check


READERS = {
    "csv": csv_reader,
    "archive": archive_reader,
    "votes": votes_reader,
    "model.json": description_reader,
    "network": network_reader,
    "log": log_reader,
    "state": state_reader,
}

# ---------------------------------------------------------------------------------------------------------------------
# Runs
# ---------------------------------------------------------------------------------------------------------------------


def run(reader, cases, seconds=float("inf")):
    """Checks damaged files of one reader. Returns a Counter of `read` and `refused`, which together are the cases."""
    counts, end = collections.Counter(), time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as folder, READERS[reader](Path(folder)) as check:

        @settings(max_examples=cases, deadline=None, database=None, suppress_health_check=HealthCheck, phases=PHASES)
        @given(EDITS)
        def property_holds(edits):
            if time.monotonic() < end:
                counts["read" if check(edits) else "refused"] += 1

        property_holds()
    return counts


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="damaged files for each reader (default: 1000)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="time limit for each reader")
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS), help="(default: all)")
    args = parser.parse_args(argv)
    for reader in args.readers:
        started = time.monotonic()
        counts = run(reader, args.cases, args.seconds)
        elapsed = time.monotonic() - started
        print(
            f"{reader:10} {counts.total():6} cases, {counts['read']} read, {counts['refused']} refused, {elapsed:.0f} s"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
