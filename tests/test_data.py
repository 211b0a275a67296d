"""FER2013 in all its forms becomes the same arrays, and a damaged one a sentence.

python -m pytest tests/test_data.py
"""

import gzip
import shutil
import zipfile

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import utils

FACES = np.random.default_rng(0).integers(0, 256, (12, 48, 48), dtype=np.uint8)
EMOTION_IDS = [0, 3, 1, 4, 2, 5, 6, 0, 3, 4, 5, 6]
USAGES = ["Training"] * 7 + ["PublicTest"] * 3 + ["PrivateTest"] * 2


def csv_text(header="emotion,pixels,Usage", order=("emotion", "pixels", "Usage")):
    lines = [header]
    for emotion, face, usage in zip(EMOTION_IDS, FACES, USAGES, strict=True):
        fields = {"emotion": str(emotion), "pixels": " ".join(map(str, face.ravel())), "Usage": usage}
        lines.append(",".join(fields[name] for name in order))
    return "\n".join(lines) + "\n"


def write_plain(folder):
    (folder / "fer2013.csv").write_text(csv_text())
    return folder / "fer2013.csv"


def write_gzip(folder):
    (folder / "fer2013.csv.gz").write_bytes(gzip.compress(csv_text().encode()))
    return folder / "fer2013.csv.gz"


def write_zip(folder):
    with zipfile.ZipFile(folder / "fer2013.zip", "w") as archive:
        archive.writestr("fer2013.csv", csv_text())
    return folder / "fer2013.zip"


def write_icml(folder):
    text = csv_text("emotion, Usage, pixels", ("emotion", "Usage", "pixels"))
    (folder / "icml_face_data.csv").write_text(text)
    return folder / "icml_face_data.csv"


def write_windows(folder):
    (folder / "fer2013.csv").write_bytes(csv_text().replace("\n", "\r\n").encode())
    return folder / "fer2013.csv"


def write_folders(folder):
    for number, (emotion, face, usage) in enumerate(zip(EMOTION_IDS, FACES, USAGES, strict=True)):
        half = "train" if usage == "Training" else "test"
        place = folder / "images" / half / utils.EMOTIONS[emotion].lower()
        place.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(place / f"{usage}_{number}.png"), face)
    shutil.copytree(folder / "images" / "train", folder / "images" / "trash")
    return folder / "images"


@pytest.mark.parametrize("write", [write_plain, write_gzip, write_zip, write_icml, write_windows, write_folders])
def test_every_form_gives_the_same_arrays(tmp_path, write):
    path = write(tmp_path)
    for _ in range(2):  # Parsed, then from the cache.
        faces, labels = utils.load_fer2013(path, "train", 7)
        assert np.array_equal(faces[..., 0], FACES[:7]) and faces.dtype == np.uint8 and faces.shape == (7, 48, 48, 1)
        assert labels.tolist() == EMOTION_IDS[:7]
        assert np.array_equal(utils.load_fer2013(path, "val", 7)[0][..., 0], FACES[7:10])
        assert utils.load_fer2013(path, "test", 7)[1].tolist() == [5, 6]


def test_five_classes_leave_out_disgust_and_fear_and_number_the_rest_anew(tmp_path):
    """Of the training ids 0 3 1 4 2 5 6, ids 1 and 2 go; 0 3 4 5 6 become 0 1 2 3 4."""
    faces, labels = utils.load_fer2013(write_plain(tmp_path), "train", 5)
    assert labels.tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(faces[..., 0], FACES[[0, 1, 3, 5, 6]])


def test_limit_keeps_the_first_rows(tmp_path):
    assert utils.load_fer2013(write_plain(tmp_path), "train", 7, limit=3)[1].tolist() == EMOTION_IDS[:3]


@settings(max_examples=20, deadline=None)
@given(st.binary(min_size=2304, max_size=2304))
def test_pixels_survive_the_text(tmp_path_factory, pixels):
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    path.write_text(f"emotion,pixels,Usage\n6,{' '.join(map(str, pixels))},Training\n")
    assert utils.load_fer2013(path, "train")[0].tobytes() == pixels


GOOD = " ".join(["7"] * 2304)
HEADER = "emotion,pixels,Usage\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{HEADER}0,{GOOD},Training\n3,{GOOD[:-2]},Training\n", ["2304", "2303", "row 3"]),
        (f"{HEADER}0,{GOOD} 1,Training\n", ["2304", "2305", "row 2"]),
        (f"{HEADER}0,{GOOD[:-1]}256,Training\n", ["0..255", "256", "row 2"]),
        (f"{HEADER}0,-1{GOOD[1:]},Training\n", ["0..255", "-1", "row 2"]),
        (f"{HEADER}0,99999999999999999999{GOOD[1:]},Training\n", ["0..255", "row 2"]),
        (f"{HEADER}0,x{GOOD[1:]},Training\n", ["whole numbers", "row 2"]),
        (f"{HEADER}0,7.5{GOOD[1:]},Training\n", ["whole numbers", "row 2"]),
        (f"{HEADER}0,,Training\n", ["2304", "row 2"]),
        (f"{HEADER}7,{GOOD},Training\n", ["emotion", "'7'", "row 2"]),
        (f"{HEADER}happy,{GOOD},Training\n", ["emotion", "'happy'", "row 2"]),
        (f"{HEADER}0,{GOOD},Validation\n", ["Usage", "'Validation'", "row 2"]),
        (f"{HEADER}0,{GOOD}\n", ["Usage", "row 2"]),
        (f"{HEADER}0,{GOOD},Training,more\n", ["row 2"]),
        (f"emotion,pixels\n0,{GOOD}\n", ["columns", "Missing: Usage"]),
        (HEADER, ["no rows"]),
        ("", ["columns"]),
        ("\n\n\n", ["columns"]),
        ("\x00\x01\xff\xfe\x80 binary \x00", ["columns"]),
    ],
)
def test_a_damaged_file_is_named_with_its_row_and_rule(tmp_path, text, words):
    path = tmp_path / "damaged.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError) as caught:
        utils.load_fer2013(path, "train", 7)
    for word in [*words, "damaged.csv"]:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cut.csv.gz", "cut.zip", "encrypted.zip", "icml.csv", "icml.csv.xz"])
def test_a_binary_or_cut_file_is_refused(tmp_path, name):
    content = {"cut.csv.gz": gzip.compress(csv_text().encode())[:5000], "cut.zip": b"PK\x03\x04" + bytes(500)}
    encrypted = bytearray(write_zip(tmp_path).read_bytes())
    encrypted[6] |= 1  # The flag for it, before the file and in the list at the end.
    encrypted[encrypted.rfind(b"PK\x01\x02") + 8] |= 1
    content["encrypted.zip"] = bytes(encrypted)
    path = tmp_path / name
    path.write_bytes(content.get(name, bytes(range(256)) * 40))
    with pytest.raises(ValueError, match=name):
        utils.load_fer2013(path, "train", 7)


def test_a_missing_file_says_where_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="Kaggle.*--data.*make_sample"):
        utils.load_fer2013(tmp_path / "fer2013.csv", "train")


def test_an_unknown_split_or_class_count_is_refused(tmp_path):
    path = write_plain(tmp_path)
    with pytest.raises(ValueError, match="train, val, test"):
        utils.load_fer2013(path, "private")
    with pytest.raises(ValueError, match="5, 7"):
        utils.load_fer2013(path, "train", 6)


def test_a_split_without_rows_is_named(tmp_path):
    path = tmp_path / "public.csv"
    path.write_text("".join(line for line in csv_text().splitlines(keepends=True) if "PrivateTest" not in line))
    with pytest.raises(ValueError, match="public.csv holds no PrivateTest rows"):
        utils.load_fer2013(path, "test", 7)


@pytest.mark.parametrize(
    ("name", "face", "word"),
    [
        ("train/joy/Training_1.png", FACES[0], "folder of faces"),
        ("train/happy/face_1.png", FACES[0], "file name"),
        ("train/happy/Training_1.png", FACES[0][:40], "48x48"),
    ],
)
def test_a_damaged_folder_is_named_with_its_rule(tmp_path, name, face, word):
    (tmp_path / name).parent.mkdir(parents=True)
    cv2.imwrite(str(tmp_path / name), face)
    with pytest.raises(ValueError, match=word):
        utils.load_fer2013(tmp_path, "train", 7)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="train/<emotion>"):
        utils.load_fer2013(tmp_path, "train")


def test_a_changed_source_drops_the_cache(tmp_path):
    path = write_plain(tmp_path)
    assert len(utils.load_fer2013(path, "train", 7)[0]) == 7
    path.write_text("".join(csv_text().splitlines(keepends=True)[:4]))
    assert len(utils.load_fer2013(path, "train", 7)[0]) == 3


def test_a_cut_cache_is_written_anew(tmp_path):
    path = write_plain(tmp_path)
    utils.load_fer2013(path, "train", 7)
    (cache,) = tmp_path.glob("*.cache.npz")
    whole = cache.read_bytes()
    cache.write_bytes(whole[: len(whole) // 2])
    assert np.array_equal(utils.load_fer2013(path, "train", 7)[0][..., 0], FACES[:7])
    assert len(cache.read_bytes()) == len(whole)


def test_a_folder_that_cannot_be_written_costs_the_cache_only(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise OSError(30, "Read-only file system")

    path = write_plain(tmp_path)
    monkeypatch.setattr(np, "savez", refuse)
    monkeypatch.setattr(type(path), "unlink", refuse)
    assert len(utils.load_fer2013(path, "train", 7)[0]) == 7


@pytest.mark.skipif(not utils.DEFAULT_DATA.exists(), reason="needs the real data/fer2013.csv")
@pytest.mark.parametrize(("num_classes", "train", "val"), [(5, 24176, 3037), (7, 28709, 3589)])
def test_the_real_data_set_has_its_known_counts(num_classes, train, val):
    assert len(utils.load_fer2013(utils.DEFAULT_DATA, "train", num_classes)[0]) == train
    assert len(utils.load_fer2013(utils.DEFAULT_DATA, "val", num_classes)[0]) == val
