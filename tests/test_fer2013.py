"""The data set and the votes: every form gives the same arrays, and damaged or wrong copies are noticed.

python -m pytest tests/test_fer2013.py
"""

import gzip
import os
import tarfile
import zipfile
from pathlib import Path

import cv2
import fuzz
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fer2013
import utils

needs_posix = pytest.mark.skipif(os.name == "nt", reason="needs named pipes, sparse files and /dev")

FACES = np.random.default_rng(0).integers(0, 256, (12, 48, 48), dtype=np.uint8)
EMOTION_IDS = [0, 3, 1, 4, 2, 5, 6, 0, 3, 4, 5, 6]
USAGES = ["Training"] * 7 + ["PublicTest"] * 3 + ["PrivateTest"] * 2


def csv_text(faces=FACES, emotions=EMOTION_IDS, usages=USAGES, order=("emotion", "pixels", "Usage"), comma=","):
    lines = [comma.join(order)]
    for emotion, face, usage in zip(emotions, faces, usages, strict=True):
        fields = {"emotion": str(emotion), "pixels": " ".join(map(str, face.ravel().tolist())), "Usage": usage}
        lines.append(",".join(fields[name] for name in order))
    return "\n".join(lines) + "\n"


def write_plain(folder):
    (folder / "fer2013.csv").write_text(csv_text())
    return folder / "fer2013.csv"


def write_gzip(folder):
    (folder / "fer2013.csv.gz").write_bytes(gzip.compress(csv_text().encode()))
    return folder / "fer2013.csv.gz"


def write_gzip_in_parts(folder):
    content = csv_text().encode()
    (folder / "fer2013.csv.gz").write_bytes(gzip.compress(content[:20_000]) + gzip.compress(content[20_000:]))
    return folder / "fer2013.csv.gz"


def write_zip(folder):
    with zipfile.ZipFile(folder / "fer2013.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("fer2013.csv", csv_text())
    return folder / "fer2013.zip"


def write_competition_zip(folder):
    with zipfile.ZipFile(folder / "competition.zip", "w") as archive:
        archive.writestr("train.csv", "emotion,pixels\n")
        archive.writestr("__MACOSX/._icml_face_data.csv", "\0")
        archive.writestr("icml_face_data.csv", csv_text(order=("emotion", "Usage", "pixels"), comma=", "))
    return folder / "competition.zip"


def write_tar(folder, mode="w:gz", name="fer2013.tar.gz"):
    """Kaggle's archive: the CSV, a README and a .bib in one folder. Here the README comes first."""
    (folder / "README").write_text("readme " * 300)
    write_plain(folder)
    with tarfile.open(folder / name, mode) as archive:
        archive.add(folder / "README", "fer2013/README")
        archive.add(folder / "fer2013.csv", "fer2013/fer2013.csv")
        archive.add(folder / "README", "fer2013/fer2013.bib")
    (folder / "fer2013.csv").unlink()
    return folder / name


def write_plain_tar(folder):
    return write_tar(folder, "w", "fer2013.tar")


def write_icml(folder):
    (folder / "icml_face_data.csv").write_text(csv_text(order=("emotion", "Usage", "pixels"), comma=", "))
    return folder / "icml_face_data.csv"


def write_windows(folder):
    (folder / "fer2013.csv").write_bytes(b"\xef\xbb\xbf" + csv_text().replace("\n", "\r\n").encode())
    return folder / "fer2013.csv"


def write_blank_lines(folder):
    (folder / "fer2013.csv").write_text(csv_text().replace("\n", "\n\n,,\n"))
    return folder / "fer2013.csv"


def write_folders(folder):
    for number, (emotion, face, usage) in enumerate(zip(EMOTION_IDS, FACES, USAGES, strict=True)):
        half = "train" if usage == "Training" else "test"
        place = folder / "images" / half / utils.EMOTIONS[emotion].lower()
        place.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place / f"{usage}_{number}.png"), face)
    return folder / "images"


WRITERS = [
    write_plain,
    write_gzip,
    write_gzip_in_parts,
    write_zip,
    write_competition_zip,
    write_tar,
    write_plain_tar,
    write_icml,
    write_windows,
    write_blank_lines,
    write_folders,
]


@pytest.mark.parametrize("write", WRITERS)
def test_every_form_gives_the_same_arrays(tmp_path, write):
    path = write(tmp_path)
    data = fer2013.read(path)
    faces, labels = data.select("train", 7)
    assert np.array_equal(faces[..., 0], FACES[:7]) and faces.dtype == np.uint8 and faces.shape == (7, 48, 48, 1)
    assert labels.tolist() == EMOTION_IDS[:7]
    assert np.array_equal(data.select("val", 7)[0][..., 0], FACES[7:10])
    assert data.select("test", 7)[1].tolist() == [5, 6]


def test_five_classes_leave_out_disgust_and_fear(tmp_path):
    """The ids in Training are 0 3 1 4 2 5 6. Ids 1 and 2 are left out; 0 3 4 5 6 become labels 0 1 2 3 4."""
    faces, labels = fer2013.read(write_plain(tmp_path)).select("train", 5)
    assert labels.tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(faces[..., 0], FACES[[0, 1, 3, 5, 6]])


def test_limit_keeps_the_first_rows(tmp_path):
    assert fer2013.read(write_plain(tmp_path)).select("train", 7, limit=3)[1].tolist() == EMOTION_IDS[:3]


@settings(max_examples=20, deadline=None)
@given(st.binary(min_size=2304, max_size=2304))
def test_pixels_survive_the_text(tmp_path_factory, pixels):
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    path.write_text(f"emotion,pixels,Usage\n6,{' '.join(map(str, pixels))},Training\n")
    assert fer2013.read(path).select("train")[0].tobytes() == pixels


@pytest.mark.parametrize("reader", ["csv", "archive", "votes"])
def test_damaged_files_are_read_correctly_or_refused_in_one_line(reader):
    counts = fuzz.run(reader, cases=100)
    assert counts.total() >= 80  # Hypothesis may find fewer different cases.


GOOD = " ".join(["7"] * 2304)
HEADER = "emotion,pixels,Usage\n"
PIXELS = "`pixels` must hold 2304 numbers, but row"
RANGE = "`pixels` must be within 0..255, but row 2 of x.csv holds"
WHOLE = "`pixels` must hold whole numbers separated by spaces, but row 2 of x.csv does not."
EMOTION = "`emotion` must be one of 0, 1, 2, 3, 4, 5, 6, but in row 2 of x.csv it is"
USAGE = "`Usage` must be one of Training, PublicTest, PrivateTest, but in row"
UNREADABLE = "x.csv: not readable as a CSV ("


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEADER}0,{GOOD},Training\n3,{GOOD[:-2]},Training\n", f"{PIXELS} 3 of x.csv holds 2303."),
        (f"{HEADER}0,{GOOD} 1,Training\n", f"{PIXELS} 2 of x.csv holds 2305."),
        (f"{HEADER}0,{GOOD[:-1]}256,Training\n", f"{RANGE} 7 to 256."),
        (f"{HEADER}0,-1{GOOD[1:]},Training\n", f"{RANGE} -1 to 7."),
        (f"{HEADER}0,{'9' * 20}{GOOD[1:]},Training\n", f"{RANGE} 7 to {2**63 - 1}."),
        (f"{HEADER}0,x{GOOD[1:]},Training\n", WHOLE),
        (f"{HEADER}0,7.5{GOOD[1:]},Training\n", WHOLE),
        (f"{HEADER}0,,Training\n", f"{PIXELS} 2 of x.csv holds 0."),
        (f"{HEADER}7,{GOOD},Training\n", f"{EMOTION} '7'."),
        (f"{HEADER}happy,{GOOD},Training\n", f"{EMOTION} 'happy'."),
        (f"{HEADER}0,{GOOD},Dev\n", f"{USAGE} 2 of x.csv it is 'Dev'."),
        (f"{HEADER}\n0,{GOOD}\n", f"{USAGE} 3 of x.csv it is ''."),
        (f"{HEADER}0,7,7,Training\n", f"{PIXELS} 2 of x.csv holds 1."),
        (f"emotion,pixels\n0,{GOOD}\n", f"{UNREADABLE}Usecols do not match columns, columns expected but"),
        (HEADER, f"{UNREADABLE}a header and no rows). Download it again, or see data/README.md."),
        ("", f"{UNREADABLE}No columns to parse from file). Download it again, or see data/README.md."),
        ("\n\n\n", f"{UNREADABLE}No columns to parse from file). Download it again, or see data/README.md."),
        ("binary \x80", f"{UNREADABLE}Usecols do not match columns"),
        (f'{HEADER}0,"{GOOD},Training\n', f"{UNREADABLE}Error tokenizing data. C error: EOF inside string"),
    ],
)  # fmt: skip
def test_a_damaged_csv_is_refused_with_its_row(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    Path("x.csv").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError) as caught:
        fer2013.read("x.csv")
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cut.csv.gz", "cut.zip", "cut.tar", "encrypted.zip", "junk.csv.gz", "junk.csv.xz"])
def test_a_damaged_archive_is_refused(tmp_path, name):
    encrypted = bytearray(write_zip(tmp_path).read_bytes())
    encrypted[6] |= 1  # The flag before the file, and the one in the list at the end.
    encrypted[encrypted.rfind(b"PK\x01\x02") + 8] |= 1
    tar = write_plain_tar(tmp_path).read_bytes()
    content = {
        "cut.csv.gz": gzip.compress(csv_text().encode())[:5000],
        "cut.zip": b"PK\x03\x04" + bytes(500),
        "cut.tar": tar[: tar.rindex(b"\n", 0, 60_000) + 1],
        "encrypted.zip": bytes(encrypted),
        "junk.csv.gz": b"\x1f\x8b" + bytes(500),
        "junk.csv.xz": b"\xfd7zXZ" + bytes(500),
    }
    (tmp_path / name).write_bytes(content[name])
    with pytest.raises(
        ValueError, match=rf"{name}: not readable as a CSV \(.+\). Download it again, or see data/README.md.$"
    ):
        fer2013.read(tmp_path / name)


@pytest.mark.parametrize("name", ["none.csv", pytest.param("/dev/zero", marks=needs_posix)])
def test_a_missing_file_says_where_to_get_it(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="no such file, .*Download FER2013 from Kaggle.*--data.*make_sample"):
        fer2013.read(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no such file, .*Download fer2013new.csv from github.com/microsoft"):
        fer2013.read(write_plain(tmp_path)).read_votes(tmp_path / name)


@needs_posix
def test_a_file_too_large_for_the_data_set_is_refused(tmp_path):
    with open(tmp_path / "sparse.csv", "wb") as file:
        file.truncate(fer2013.MAX_FILE_BYTES + 1)
    with pytest.raises(FileNotFoundError, match="no such file, or larger than 1 GB"):
        fer2013.read(tmp_path / "sparse.csv")


def test_a_split_without_rows_is_named(tmp_path):
    path = tmp_path / "public.csv"
    path.write_text("".join(line for line in csv_text().splitlines(keepends=True) if "PrivateTest" not in line))
    with pytest.raises(ValueError, match="public.csv: no PrivateTest rows .*Splits with rows: train, val.$"):
        fer2013.read(path).select("test", 7)


@pytest.mark.parametrize(
    ("name", "face", "message"),
    [
        ("train/joy/Training_1.png", FACES[0], "`emotion` must be one of angry, disgust, .*Training_1.png it is 'joy'"),
        ("train/happy/face_1.png", FACES[0], "`Usage` must be one of Training, .*face_1.png it is 'face'"),
        ("train/happy/Training_1.png", FACES[0][:40], "48x48 pixels, but .*Training_1.png is not"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path, name, face, message):
    (tmp_path / name).parent.mkdir(parents=True)
    cv2.imwrite(str(tmp_path / name), face)
    with pytest.raises(ValueError, match=message):
        fer2013.read(tmp_path)


def test_a_folder_without_faces_is_refused(tmp_path):
    for path in (tmp_path, Path("/")):
        with pytest.raises(ValueError, match="no train/<emotion>/"):
            fer2013.read(path)


# Votes.

VOTES_HEADER = "Usage,Image name,neutral,happiness,surprise,sadness,anger,disgust,fear,contempt,unknown,NF\n"
# One row for each of FACES, with the columns of VOTES_HEADER.
VOTES = [
    (0, 0, 0, 0, 10, 0, 0, 0, 0, 0),
    (3, 6, 0, 0, 0, 0, 0, 0, 1, 0),
    (0, 0, 0, 0, 3, 5, 0, 2, 0, 0),
    (0, 0, 0, 5, 1, 0, 3, 0, 1, 0),
    (0, 0, 2, 0, 0, 0, 8, 0, 0, 0),
    (0, 0, 0, 0, 0, 0, 0, 0, 2, 8),
    (1, 0, 0, 0, 0, 9, 0, 0, 0, 0),
    *[(0, 10, 0, 0, 0, 0, 0, 0, 0, 0)] * 5,
]


NEUTRAL = "`neutral` must be one of 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, but in row 2 of v.csv it is"


def votes_text(votes=VOTES, usages=USAGES, header=VOTES_HEADER):
    lines = [f"{usage},fer.png,{','.join(map(str, row))}\n" for usage, row in zip(usages, votes, strict=True)]
    return header + "".join(lines)


def write_votes(folder, text):
    (folder / "fer2013new.csv").write_text(text)
    return folder / "fer2013new.csv"


def test_votes_become_shares_weights_and_consensus(tmp_path):
    """Labels of Training are Angry, Happy, Disgust, Sad, Fear, Surprise, Neutral.

    Row 2, five classes: 3 neutral + 6 happiness of 10 votes: shares 0.667 and 0.333, weight 0.9, Happy by 6 > 5.
    Row 4: 5 of 10 for sadness are not more than half. Row 6: no vote for an emotion. Row 7: disgust is not a class.
    """
    data = fer2013.read(write_plain(tmp_path)).read_votes(write_votes(tmp_path, votes_text()))
    votes, weights, consensus = data.select("train", 5)
    assert votes.dtype == weights.dtype == np.float32
    # Rows 1, 2, 4, 6, 7 of the CSV; columns Angry, Happy, Sad, Surprise, Neutral.
    shares = [[1, 0, 0, 0, 0], [0, 6 / 9, 0, 0, 3 / 9], [1 / 6, 0, 5 / 6, 0, 0], [0] * 5, [0, 0, 0, 0, 1]]
    assert np.allclose(votes, shares)
    assert np.allclose(weights, [1, 0.9, 0.6, 0, 0.1])
    assert consensus.tolist() == [0, 1, -1, -1, -1]
    assert data.select("train", 7)[2].tolist() == [0, 3, -1, -1, 2, -1, 1]
    assert data.select("train", 7, limit=2)[2].tolist() == [0, 3]
    assert data.select("test", 7)[0].shape == (2, 7)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (votes_text(VOTES[:-1], USAGES[:-1]), "v.csv must have x.csv's rows, but their `Usage` differs in row 13."),
        (votes_text(usages=USAGES[::-1]), "v.csv must have x.csv's rows, but their `Usage` differs in row 2."),
        (
            votes_text(VOTES[::-1]),
            "v.csv must have the row order of x.csv, but most votes match the label of only 8% of 12 successive faces "
            "(FER2013: over 59%).",
        ),
        (votes_text(header="Usage,anger\n"), "v.csv: not readable as a CSV ("),
        (votes_text([(11, *VOTES[0][1:]), *VOTES[1:]]), f"{NEUTRAL} '11'."),
        (votes_text([(0.5, *VOTES[0][1:]), *VOTES[1:]]), f"{NEUTRAL} '0.5'."),
        (VOTES_HEADER, "v.csv: not readable as a CSV (a header and no rows). Download it again, or see"),
        (csv_text(), "v.csv: not readable as a CSV (Usecols do not match columns"),
    ],
)  # fmt: skip
def test_votes_that_do_not_fit_are_refused(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    Path("x.csv").write_text(csv_text())
    Path("v.csv").write_text(text)
    with pytest.raises(ValueError) as caught:
        fer2013.read("x.csv").read_votes("v.csv")
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_votes_are_refused_with_a_folder(tmp_path):
    with pytest.raises(ValueError, match="a folder of images lacks the row order of the votes. Name fer2013.csv"):
        fer2013.read(write_folders(tmp_path)).read_votes(write_votes(tmp_path, votes_text()))


def test_votes_in_another_order_within_a_block_are_refused(sample_csv, sample_votes, tmp_path):
    """Rows 501 to 1000 of 1680 are reversed: the other blocks still agree."""
    header, *lines = sample_votes.read_text().splitlines(keepends=True)
    data = fer2013.read(sample_csv)
    assert len(data.read_votes(sample_votes).select("train", 7)[0]) == 1120
    path = write_votes(tmp_path, "".join([header, *lines[:500], *lines[999:499:-1], *lines[1000:]]))
    with pytest.raises(ValueError, match=r"only \d+% of 560 successive faces"):
        data.read_votes(path)


# Wrong data sets.


@pytest.fixture(scope="module")
def uneven(sample_csv):
    """The drawn faces with another number of faces for each split and emotion, as FER2013 has."""
    _, faces, emotions, usages = fer2013.read(sample_csv)
    kept = np.zeros(len(faces), bool)
    for usage, number in ((0, 155), (1, 30), (2, 25)):
        for emotion in range(7):
            kept[np.flatnonzero((usages == usage) & (emotions == emotion))[: number + emotion - 3]] = True
    return faces[kept], emotions[kept], usages[kept]


ALPHABETICAL = np.array([0, 1, 2, 3, 5, 6, 4])  # Angry, Disgust, Fear, Happy, Neutral, Sad, Surprise.


def make_public_test_of_training(faces, emotions, usages):
    rows = np.concatenate([np.flatnonzero(usages == 0), np.flatnonzero(usages == 0)[:210], np.flatnonzero(usages == 2)])
    return faces[rows], emotions[rows], np.sort(usages)


COUNTS = "rows may be missing, doubled or mixed up: Training has"
WRONG = {
    "shuffled labels": (
        lambda f, e, u: (f, np.random.default_rng(0).permutation(e), u),
        "labels may be shuffled: those of Training are not related to the pixels.",
    ),
    "inverted pixels": (lambda f, e, u: (255 - f, e, u), "pixels may be inverted, transposed or blank: the mean face"),
    "transposed pixels": (lambda f, e, u: (f.swapaxes(1, 2), e, u), "pixels may be inverted, transposed or blank: the"),
    "upside down": (lambda f, e, u: (f[:, ::-1], e, u), "pixels may be inverted, transposed or blank: the mean face"),
    "all black": (lambda f, e, u: (f * 0, e, u), "pixels may be inverted, transposed or blank: the mean face"),
    "alphabetical": (lambda f, e, u: (f, ALPHABETICAL[e], u), f"{COUNTS} 158 faces of Sad instead of 156."),
    "PublicTest as PrivateTest": (
        lambda f, e, u: (f, e, np.choose(u, [0, 2, 1])),
        "rows may be missing, doubled or mixed up: PublicTest has 22 faces of Angry instead of 27.",
    ),
    "Training as PublicTest": (
        make_public_test_of_training,
        "PublicTest is not independent: 210 of its 210 faces are copies of Training faces.",
    ),
    "half missing": (
        lambda f, e, u: (f[::2], e[::2], u[::2]),
        f"{COUNTS} 66 faces of Angry instead of 152.",
    ),
    "doubled": (
        lambda f, e, u: (np.tile(f, (2, 1, 1, 1)), np.tile(e, 2), np.tile(u, 2)),
        f"{COUNTS} 304 faces of Angry instead of 152.",
    ),
}


@pytest.fixture
def counts_of_uneven(uneven, monkeypatch):
    """Makes the counts of the drawn faces those that are expected."""
    counts = [np.bincount(uneven[1][uneven[2] == usage], minlength=7).tolist() for usage in range(3)]
    monkeypatch.setattr(fer2013, "FACES_PER_CLASS", counts)


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_data_set_is_noticed(uneven, counts_of_uneven, wrong):
    change, message = WRONG[wrong]
    warnings = fer2013.Dataset("a.csv", *change(*uneven)).warnings()
    assert any(f"a.csv: {message}" in warning for warning in warnings), warnings
    assert len(warnings) <= 2  # Shuffling changes the counts too, and black faces are also copies.


def test_a_right_data_set_gives_no_warning(uneven, counts_of_uneven):
    assert fer2013.Dataset("a.csv", *uneven).warnings() == []


def test_the_drawn_sample_gives_one_warning(sample_csv):
    (warning,) = fer2013.read(sample_csv).warnings()
    assert warning == f"{sample_csv}: {COUNTS} 160 faces of Angry instead of 3995."


def test_copies_are_exact(tmp_path):
    nearly = FACES[:1].copy()
    nearly[0, 0, 0] ^= 1
    assert fer2013.find_copies(np.concatenate([FACES[:2], nearly]), FACES[1:]).tolist() == [False, True, False]


# The published data, where it is.


@pytest.fixture(scope="module")
def published():
    """FER2013 itself."""
    if not fer2013.DEFAULT_DATA.exists():
        pytest.skip("needs the real data/fer2013.csv")
    return fer2013.read(fer2013.DEFAULT_DATA)


@pytest.mark.parametrize(("num_classes", "train", "val"), [(5, 24176, 3037), (7, 28709, 3589)])
def test_fer2013_has_its_known_counts(published, num_classes, train, val):
    assert len(published.select("train", num_classes)[0]) == train
    assert len(published.select("val", num_classes)[0]) == val


def test_fer2013_gives_no_warning(published):
    assert published.warnings() == []


def test_the_expected_mean_face_is_fer2013s(published):
    blocks = published.select("train", 7)[0].mean(axis=0).reshape(6, 8, 6, 8).mean(axis=(1, 3))
    assert tuple(blocks.round().ravel()) == fer2013.MEAN_FACE


# data/make_sample.py


def test_the_sample_is_the_same_for_the_same_seed(tmp_path, run_script):
    contents = []
    for seed in (0, 0, 1):
        arguments = ("--output", tmp_path / "drawn.csv", "--faces-per-class", 2, "--seed", seed)
        finished = run_script("data/make_sample.py", *arguments)
        assert finished.returncode == 0, finished.stderr
        contents.append([(tmp_path / name).read_bytes() for name in ("drawn.csv", "drawn_votes.csv")])
    assert contents[0] == contents[1] and contents[0][0] != contents[2][0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["drawn.csv", "drawn_votes.csv"]


def test_the_sample_has_all_splits_and_fitting_votes(sample_csv, sample_votes):
    data = fer2013.read(sample_csv)
    for split, rows in (("train", 1120), ("val", 280), ("test", 280)):
        faces, labels = data.select(split, 7)
        assert len(faces) == rows and np.bincount(labels).tolist() == [rows // 7] * 7
        votes, weights, consensus = data.read_votes(sample_votes).select(split, 7)
        assert 0.5 < np.mean(consensus == labels) < 1 and 0.5 < weights.mean() < 1
        assert np.mean(votes.argmax(axis=1) == labels) > 0.9


def test_the_sample_goes_to_a_csv_file_only(tmp_path, run_script):
    finished = run_script("data/make_sample.py", "--output", tmp_path / "faces.txt")
    assert finished.returncode == 2 and "must be a file whose name ends in .csv" in finished.stderr
    (tmp_path / "file").touch()
    finished = run_script("data/make_sample.py", "--output", tmp_path / "file" / "faces.csv")
    (line,) = finished.stderr.splitlines()
    assert finished.returncode == 2 and line.startswith(f"make_sample.py: {tmp_path / 'file' / 'faces.csv'}: ")
    assert line.endswith(". Choose another --output.")
