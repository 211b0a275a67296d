"""A log is written with its columns, locked, read back, refused when damaged, and summed up.

python -m pytest tests/test_emotion_log.py
"""

import csv
import errno
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

import emotion_log
import utils

CLASSES = ("Happy", "Sad")
# (frame, seconds, faces): track 1 in four frames of half a second, three of them happy; track 2 in one; then no face.
FRAMES = [
    (0, 0.0, [(1, "Happy", 0.8)]),
    (1, 0.5, [(1, "Happy", 0.7), (2, "Sad", 0.1)]),
    (2, 1.0, [(1, "Happy", 0.6)]),
    (3, 1.5, [(1, "Sad", 0.4)]),
    (4, 2.0, []),
]


def make_face(track, label, happy, held=False):
    return utils.Face(
        (10, 20, 30, 40), label, max(happy, 1 - happy), {"Happy": happy, "Sad": 1 - happy}, track=track, held=held
    )


def write_log(path, frames=FRAMES, file="a.mp4", **columns):
    with emotion_log.EmotionLog(path, CLASSES, **columns) as log:
        for number, time_s, faces in frames:
            log.write(number, time_s, file, [make_face(*face) for face in faces], "2026-11-24T12:00:00.000+00:00")
    return path


@pytest.fixture(params=["log.csv", "log.jsonl"])
def log(request, tmp_path):
    return write_log(tmp_path / request.param)


# Writing


def test_csv_columns_and_empty_fields_without_a_face(tmp_path):
    lines = write_log(tmp_path / "log.csv").read_text().splitlines()
    assert lines[0] == "frame,time_s,track,x,y,width,height,label,confidence,Happy,Sad,angle,held"
    assert lines[1] == "0,0.0,1,10,20,30,40,Happy,0.8,0.8,0.2,0.0,0"
    assert lines[-1] == "4,2.0,,,,,,,,,,,"


def test_json_lines_hold_numbers_and_null(tmp_path):
    rows = [json.loads(line) for line in write_log(tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[0] == dict(
        frame=0, time_s=0.0, track=1, x=10, y=20, width=30, height=40, label="Happy", confidence=0.8,
        Happy=0.8, Sad=0.2, angle=0.0, held=0,
    )  # fmt: skip
    assert rows[-1]["track"] is None and rows[-1]["Happy"] is None


def test_file_comes_first_and_utc_last(tmp_path):
    path = write_log(tmp_path / "log.csv", files=["a.mp4"], utc_column=True)
    rows = list(csv.reader(path.open(newline="", encoding="utf-8-sig")))
    assert rows[0][0] == "file" and rows[0][-1] == "utc"
    assert rows[1][0] == "a.mp4" and rows[1][-1] == "2026-11-24T12:00:00.000+00:00"


def test_held_face_is_marked(tmp_path):
    path = write_log(tmp_path / "log.csv", [(0, 0.0, [(1, "Happy", 0.8)]), (1, 0.5, [(1, "Happy", 0.8, True)])])
    assert [row["held"] for row in csv.DictReader(path.open())] == ["0", "1"]


def test_name_beyond_ascii_is_marked_as_utf8_for_spreadsheets(tmp_path):
    """Other logs are plain ASCII, so that a program finds their first column without knowing of the mark."""
    with_names = write_log(tmp_path / "names.csv", file="k\u00f6ln.mp4", files=["k\u00f6ln.mp4"])
    assert with_names.read_bytes().startswith(b"\xef\xbb\xbffile,") and "k\u00f6ln.mp4" in with_names.read_text("utf-8")
    assert write_log(tmp_path / "ascii.csv", files=["a.mp4"]).read_bytes().startswith(b"file,frame,")
    assert write_log(tmp_path / "log.csv", file="k\u00f6ln.mp4").read_bytes().startswith(b"frame,")
    assert write_log(tmp_path / "log.jsonl", files=["k\u00f6ln.mp4"]).read_bytes().startswith(b"{")
    assert emotion_log.read_log(with_names)["file"].unique() == ["k\u00f6ln.mp4"]


@pytest.mark.parametrize("name", ["=1+1.mp4", "+a.mp4", "-a.mp4", "@a.mp4", "\ta.mp4"])
def test_name_that_a_spreadsheet_takes_for_a_formula_is_escaped_and_read_back(tmp_path, name):
    path = write_log(tmp_path / "log.csv", file=name, files=[name])
    assert list(csv.reader(path.open(newline="")))[1][0] == f"'{name}"
    assert emotion_log.read_log(path)["file"].unique() == [name]
    path = write_log(tmp_path / "log.jsonl", file=name, files=[name])
    assert json.loads(path.read_text().splitlines()[0])["file"] == name


def test_row_is_on_disk_before_the_log_is_closed(tmp_path):
    with emotion_log.EmotionLog(tmp_path / "log.csv", CLASSES) as log:
        log.write(0, 0.0, None, [])
        assert len((tmp_path / "log.csv").read_text().splitlines()) == 2


WRITER = """
import pathlib, sys, time, emotion_log
with emotion_log.EmotionLog(pathlib.Path(sys.argv[1]), ("Happy", "Sad")) as log:
    for number in range(1000):
        log.write(number, number / 10, None, [])
        print(number, flush=True)
        time.sleep(0.01)
"""


def start_writer(path):
    """Starts a process that writes a log; returns it after its first row."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    writer = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True, env=environment)
    assert writer.stdout.readline() == "0\n"
    return writer


def test_log_of_a_killed_process_is_complete_up_to_its_last_row(tmp_path):
    writer = start_writer(tmp_path / "log.csv")
    time.sleep(0.2)
    writer.kill()
    printed = writer.communicate()[0].split()
    frames = emotion_log.read_log(tmp_path / "log.csv")["frame"].tolist()
    assert frames == list(range(len(frames))) and len(frames) >= len(printed) > 3
    assert os.listdir(tmp_path) == ["log.csv"]
    write_log(tmp_path / "log.csv")  # The lock went with the process.
    assert len(emotion_log.read_log(tmp_path / "log.csv")) == 6


def test_second_writer_is_refused_and_the_rows_do_not_mix(tmp_path):
    writer = start_writer(tmp_path / "log.csv")
    try:
        with pytest.raises(OSError, match="log.csv: another demo is writing this log. Choose another --log."):
            write_log(tmp_path / "log.csv")
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
    assert emotion_log.read_log(tmp_path / "log.csv")["track"].max() == 0


def test_former_log_is_kept_until_the_first_frame(tmp_path):
    (tmp_path / "log.csv").write_text("former")
    with emotion_log.EmotionLog(tmp_path / "log.csv", CLASSES) as log:
        assert (tmp_path / "log.csv").read_text() == "former"
        log.write(0, 0.0, None, [])
        assert (tmp_path / "log.csv").read_text().startswith("frame,")


def test_new_log_without_a_frame_is_deleted(tmp_path):
    with emotion_log.EmotionLog(tmp_path / "log.csv", CLASSES):
        assert (tmp_path / "log.csv").exists()
    assert not (tmp_path / "log.csv").exists()


def test_log_that_cannot_be_opened_is_refused_before_the_first_frame(tmp_path):
    """Its folder is a file."""
    (tmp_path / "folder").touch()
    with pytest.raises(OSError, match=r"log.csv: .+\. Choose another --log\."):
        emotion_log.EmotionLog(tmp_path / "folder" / "log.csv", CLASSES).__enter__()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_full_disk_is_reported_with_the_name_of_the_log(tmp_path):
    log = emotion_log.EmotionLog(tmp_path / "log.csv", CLASSES)
    log.__enter__()
    log.write(0, 0.0, None, [])
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, log.file.fileno())
    os.close(full)
    with pytest.raises(OSError, match=r"log.csv: the log ends early \(No space left on device\)"):
        log.write(1, 0.1, None, [])
    log.__exit__()


@pytest.mark.parametrize("name", ["log.txt", "model.json", "", "log"])
def test_other_suffix_is_refused_for_writing(tmp_path, name):
    with pytest.raises(ValueError, match=r"must end in \.csv or \.jsonl"):
        emotion_log.EmotionLog(tmp_path / name, CLASSES)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no named pipes in folders")
def test_named_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "log.csv")
    with pytest.raises(OSError, match="not a regular file"):
        emotion_log.EmotionLog(tmp_path / "log.csv", CLASSES)
    with pytest.raises(OSError, match="not a regular file"):
        emotion_log.read_log(tmp_path / "log.csv")


# Reading


def test_what_is_written_is_read_back(log):
    rows = emotion_log.read_log(log)
    assert emotion_log.list_classes(rows) == list(CLASSES)
    assert rows["frame"].tolist() == [0, 1, 1, 2, 3, 4]
    assert rows["track"].tolist() == [1, 1, 2, 1, 1, 0]
    assert rows["label"].tolist() == ["Happy", "Happy", "Sad", "Happy", "Sad", ""]
    assert np.allclose(rows.loc[1, list(CLASSES)].astype(float), [0.7, 0.3])
    assert rows["seconds"].tolist() == [0.5] * 6
    assert rows["file"].unique() == [""] and rows["log"].unique() == [str(log)] and not rows["held"].any()


def save_with_pandas(path):
    """Empty tracks make the numbers of the others floats: `1.0`."""
    pd.read_csv(path).to_csv(path)
    assert ",1.0," in path.read_text()


def save_with_german_spreadsheet(path):
    text = path.read_text().replace(",", ";").replace(".", ",")
    path.write_bytes(text.replace("\r\n", "\n").replace("\n", "\r\n").encode("utf-8-sig"))


def save_with_tabs_and_empty_rows(path):
    rows = list(csv.reader(path.open(newline="")))
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter="\t", quoting=csv.QUOTE_ALL).writerows([*rows, [""] * len(rows[0])])


def save_with_separator_line(path):
    path.write_bytes(b"\xef\xbb\xbfsep=,\r\n" + path.read_bytes())


def save_with_separator_line_and_semicolons(path):
    path.write_text("sep=;\n" + path.read_text().replace(",", ";"))


def save_sorted_by_label(path):
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header, *sorted(rows, key=lambda row: row.split(",")[7])]))


def save_without_angle_and_held(path):
    path.write_text("".join(row.rsplit(",", 2)[0] + "\n" for row in path.read_text().splitlines()))


@pytest.mark.parametrize(
    "save",
    [
        save_with_pandas, save_with_german_spreadsheet, save_with_tabs_and_empty_rows, save_with_separator_line,
        save_with_separator_line_and_semicolons, save_sorted_by_label, save_without_angle_and_held,
    ],
)  # fmt: skip
def test_log_that_was_saved_again_has_the_same_summary_and_timeline(tmp_path, save):
    rows = emotion_log.read_log(write_log(tmp_path / "log.csv"))
    save(tmp_path / "log.csv")
    again = emotion_log.read_log(tmp_path / "log.csv")
    assert emotion_log.summarize(again) == emotion_log.summarize(rows)
    curves, curves_again = (emotion_log.timeline_curves(log)[0] for log in (rows, again))
    for one, other in zip(curves, curves_again, strict=True):
        assert one[0] == other[0] and np.array_equal(one[1], other[1]) and np.array_equal(one[2], other[2])


def test_log_that_pandas_wrote_as_json_lines_is_read(tmp_path):
    table = pd.read_csv(write_log(tmp_path / "log.csv"))
    table.to_json(tmp_path / "log.jsonl", orient="records", lines=True)
    rows = emotion_log.read_log(tmp_path / "log.jsonl")
    assert rows["track"].tolist() == [1, 1, 2, 1, 1, 0] and rows["label"].tolist()[-1] == ""


@pytest.mark.parametrize(("column", "longest"), [("utc", 1), ("height", 8.8)])
def test_last_frame_counts_as_the_one_before_and_a_streams_at_most_a_second(tmp_path, column, longest):
    """Two files: frames at 0, 0.2 and 9 s, then at 0 and 0.1 s, then a file of one frame."""
    lines = [f"file,frame,time_s,track,label,Happy,{column}"]
    for frame, (file, time_s) in enumerate([("a", 0), ("a", 0.2), ("a", 9), ("b", 0), ("b", 0.1), ("c", 0)]):
        lines.append(f"{file},{frame},{time_s},1,Happy,1,9")
    (tmp_path / "log.csv").write_text("\n".join(lines))
    rows = emotion_log.read_log(tmp_path / "log.csv")
    assert rows["file"].tolist() == list("aaabbc")
    assert np.allclose(rows["seconds"], [0.2, longest, longest, 0.1, 0.1, 0])


@pytest.mark.parametrize("texts", [("False", "True"), ("0.0", "1.0"), ("0,0", "1,0")])
def test_held_faces_are_held_in_a_log_that_was_saved_again(tmp_path, texts):
    frames = [(number, number / 2, [(1, "Happy", 0.8, number == 2)]) for number in range(4)]
    table = pd.read_csv(write_log(tmp_path / "log.csv", frames))
    table.assign(held=table["held"].map(dict(enumerate(texts)))).to_csv(tmp_path / "log.csv", index=False)
    assert emotion_log.read_log(tmp_path / "log.csv")["held"].tolist() == [False, False, True, False]


def test_logs_of_two_models_in_one_file_are_read(tmp_path):
    table = pd.read_csv(write_log(tmp_path / "log.csv"))
    other = table.rename(columns={"Sad": "Fear"}).assign(frame=table["frame"] + 10, time_s=table["time_s"] + 10)
    pd.concat([table, other.replace({"label": {"Sad": "Fear"}})]).to_csv(tmp_path / "log.csv", index=False)
    rows = emotion_log.read_log(tmp_path / "log.csv")
    assert len(rows) == 12 and rows["Fear"][:6].eq(0).all() and rows["Sad"][6:].eq(0).all()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("log.csv", "a,b\n1,2\n", "no column frame"),
        ("log.csv", "frame,time_s,track,label\n0,0.0,1,Happy\n", "no column Angry"),
        ("log.csv", "frame,time_s,track,label,Happy\n", "no rows"),
        ("log.csv", "", "No columns"),
        ("log.csv", "frame,time_s,track,label,Happy\n0,0.0,1,Happy,0.5\n1,0.1,1\n", "row 2: label nan"),
        ("log.csv", "frame,time_s,track,label,Happy\n0,nan,1,Happy,0.5\n", "row 1: time_s nan"),
        ("log.csv", "frame,time_s,track,label,Happy\n0,0,1,Happy,1e39\n", "row 1: Happy 1e+39"),
        ("log.csv", "frame,time_s,track,label,Happy\n0,0,99999999999,Happy,0.5\n", "99999999999"),
        ("log.csv", "frame,time_s,track,label,Happy\n0,0,1,Cheerful,0.5\n", "row 1: label Cheerful"),
        ("log.csv", "frame,time_s,track,label,Happy\n0.5,0,1,Happy,0.5\n", "row 1: frame 0.5"),
        ("log.csv", "frame,time_s,track,label,Happy\n0,0,1,Happy,0.5\n1,0,1,Happy,0.5,1,2\n", "line 3, saw 7"),
        ("log.csv", "frame,time_s,track,label,Happy\n" + "0" * 70_000 + "\n", "row 1: time_s nan"),
        ("log.jsonl", "{'frame'", "Expecting property name"),
        ("log.jsonl", "[1, 2]", "no column frame"),
        ("log.jsonl", "[" * 60_000, "recursion"),
    ],
)
def test_damaged_log_is_one_line_and_status_2(tmp_path, capsys, name, content, reason):
    (tmp_path / name).write_text(content)
    assert emotion_log.main([str(tmp_path / name)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and f"{name}: not a log of webcam_demo.py" in error and reason in error


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("left", [1, 5, 20])
def test_row_that_a_full_disk_cut_off_is_left_out(tmp_path, suffix, left):
    """The row is cut off after some characters. After five those of the CSV could be a frame without a face."""
    log = write_log(tmp_path / f"log{suffix}")
    *rows, last, _ = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(rows) + last[:left])
    assert emotion_log.read_log(log)["frame"].tolist() == [0, 1, 1, 2]


def test_missing_log_is_one_line_and_status_2(tmp_path, capsys):
    assert emotion_log.main([str(tmp_path / "none.csv")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "none.csv: no such file" in error


def test_more_rows_or_bytes_than_the_limit_are_refused(tmp_path, monkeypatch):
    log = write_log(tmp_path / "log.csv")
    monkeypatch.setattr(emotion_log, "MAX_LOG_ROWS", 6)
    emotion_log.read_log(log)
    monkeypatch.setattr(emotion_log, "MAX_LOG_ROWS", 5)
    with pytest.raises(ValueError, match="more than 5 rows"):
        emotion_log.read_log(log)
    monkeypatch.setattr(emotion_log, "MAX_LOG_BYTES", log.stat().st_size - 1)
    with pytest.raises(ValueError, match="log.csv: larger than 0 MB. Split the log."):
        emotion_log.read_log(log)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
def test_memory_for_a_row_is_bounded(tmp_path, suffix, monkeypatch):
    """A row as a dictionary takes 2,000 bytes, as a row of the DataFrame with all that the summary needs 300."""
    monkeypatch.setattr(emotion_log, "CHUNK", 1000)
    rows, names = [f"{i},{i / 30:.3f},1,Happy,0.5,0.5" for i in range(20_000)], "frame,time_s,track,label,Happy,Sad"
    table = pd.read_csv(io.StringIO("\n".join([names, *rows])))
    write = table.to_csv if suffix == ".csv" else lambda path: table.to_json(path, orient="records", lines=True)
    write(tmp_path / f"log{suffix}")
    tracemalloc.start()
    rows = emotion_log.read_log(tmp_path / f"log{suffix}")
    emotion_log.summarize(rows)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(rows) == 20_000 and peak < 500 * len(rows)


VALUES = st.one_of(st.text(max_size=8), st.integers().map(str), st.floats().map(str), st.sampled_from(["Happy", ""]))


@settings(max_examples=75, deadline=None)
@given(st.lists(st.lists(VALUES, min_size=5, max_size=5), max_size=4), st.binary(max_size=40))
def test_any_content_is_read_or_refused_with_a_value_error(rows, tail):
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["frame", "time_s", "track", "label", "Happy"], *rows])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.csv"
        path.write_bytes(text.getvalue().encode(errors="replace") + tail)
        check_read_or_refused(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=75, deadline=None)
@given(st.lists(st.fixed_dictionaries(dict.fromkeys(("frame", "time_s", "track", "label", "Happy"), JSON)), max_size=3))
def test_any_json_is_read_or_refused_with_a_value_error(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        check_read_or_refused(path)


def check_read_or_refused(path):
    try:
        rows = emotion_log.read_log(path)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
    else:
        probabilities = rows[emotion_log.list_classes(rows)]
        assert np.isfinite(rows["time_s"]).all() and ((probabilities >= 0) & (probabilities <= 1)).all(axis=None)
        assert emotion_log.summarize(rows)
        for _, seconds, probabilities in emotion_log.timeline_curves(rows)[0]:
            assert len(seconds) == len(probabilities)
        assert (emotion_log.find_intervals(rows)["end_s"] > 0).all() or (rows["time_s"] < 0).any()


# Summing up


def test_summary_weighs_each_frame_by_its_time(log):
    """Track 1 is happy for 1.5 of its 2 s."""
    assert emotion_log.summarize(emotion_log.read_log(log)).splitlines() == [
        "5 faces in 5 frames, 2 tracks. Shares of the time that each was seen:",
        "  Face 1: 2.0 s, Happy 75%, Sad 25%",
        "  Face 2: 0.5 s, Sad 100%",
    ]


def test_held_face_has_no_share_in_the_summary_and_leaves_a_gap_in_the_timeline(tmp_path):
    """Happy for 0.5 s, then held for 1 s with the old emotion, then Sad for 0.5 s."""
    frames = [(0, 0.0, [(1, "Happy", 0.8)]), (1, 0.5, [(1, "Happy", 0.8, True)]), (2, 1.0, [(1, "Happy", 0.8, True)])]
    frames += [(3, 1.5, [(1, "Sad", 0.2)]), (4, 2.0, [])]
    rows = emotion_log.read_log(write_log(tmp_path / "log.csv", frames))
    assert emotion_log.summarize(rows).splitlines() == [
        "4 faces in 5 frames, 2 of them held, 1 track. Shares of the time that each was seen:",
        "  Face 1: 1.0 s, Happy 50%, Sad 50%",
    ]
    ((_, seconds, probabilities),), _ = emotion_log.timeline_curves(rows)
    assert seconds.tolist() == [0, 0, 0.5, 0.5, 1.5, 1.5, 2, 2]
    assert np.allclose(probabilities[:, 0], [0, 0.8, 0.8, 0, 0, 0.2, 0.2, 0])


def test_summary_lists_the_tracks_seen_longest(tmp_path):
    """Track k is seen in k frames, k up to 15."""
    frames = [(i, i / 10, [(track, "Happy", 0.9) for track in range(1, 16) if i < track]) for i in range(16)]
    rows = emotion_log.read_log(write_log(tmp_path / "log.csv", frames))
    lines = emotion_log.summarize(rows).splitlines()
    assert lines[1].startswith("  Face 15: 1.5 s") and lines[12].startswith("  Face 4: 0.4 s")
    assert lines[13:] == ["  and 3 more, seen for less time"]


def test_images_are_counted_and_have_no_timeline(tmp_path):
    frames = [(0, 0.0, [(1, "Happy", 0.9)]), (1, 0.0, [(1, "Happy", 0.8)]), (2, 0.0, [(1, "Sad", 0.1)])]
    log = write_log(tmp_path / "log.csv", frames, files=["a.mp4"])
    assert emotion_log.report([log]) == "3 faces in 3 frames: Happy 2, Sad 1."
    assert not emotion_log.timeline_path(log).exists()


def test_log_without_faces_has_a_summary_and_no_timeline(tmp_path):
    log = write_log(tmp_path / "log.csv", [(0, 0.0, []), (1, 0.5, [])])
    assert emotion_log.report([log]).startswith("0 faces in 2 frames, 0 tracks.")
    assert not emotion_log.timeline_path(log).exists()


def test_curve_of_one_frame_lasts_as_long_as_the_frame(log):
    rows = emotion_log.read_log(log)
    name, seconds, probabilities = emotion_log.timeline_curves(rows)[0][1]
    assert name == "Face 2" and seconds.tolist() == [0.5, 0.5, 1.0, 1.0]
    assert np.allclose(probabilities, [[0, 0], [0.1, 0.9], [0.1, 0.9], [0, 0]])


def test_curve_is_zero_while_the_face_is_away(tmp_path):
    here = [(1, "Happy", 0.8)]
    frames = [(0, 0.0, here), (1, 0.5, here), (2, 1.0, []), (3, 1.5, []), (4, 2.0, here), (5, 2.5, [])]
    rows = emotion_log.read_log(write_log(tmp_path / "log.csv", frames))
    _, seconds, probabilities = emotion_log.timeline_curves(rows)[0][0]
    assert seconds.tolist() == [0, 0, 0.5, 1, 1, 2, 2, 2.5, 2.5]
    assert np.allclose(probabilities[:, 0], [0, 0.8, 0.8, 0.8, 0, 0, 0.8, 0.8, 0])


def test_photograph_in_a_folder_of_videos_has_no_share_of_the_time(tmp_path):
    with emotion_log.EmotionLog(tmp_path / "log.csv", CLASSES, files=["a.mp4"]) as log:
        for number, (time_s, file) in enumerate([(0.0, "a.jpg"), (0.0, "b.mp4"), (0.5, "b.mp4")]):
            log.write(number, time_s, file, [make_face(1, "Happy", 0.8)])
    rows = emotion_log.read_log(tmp_path / "log.csv")
    lines = ["  b.mp4, face 1: 1.0 s, Happy 100%", "  Images: Happy 1"]
    assert emotion_log.summarize(rows).splitlines()[1:] == lines
    assert [name for name, *_ in emotion_log.timeline_curves(rows)[0]] == ["b.mp4, face 1"]


def test_long_curve_is_drawn_with_fewer_points(tmp_path, monkeypatch):
    """Of four frames every second one is drawn, and both ends."""
    monkeypatch.setattr(emotion_log, "POINTS_DRAWN", 3)
    rows = emotion_log.read_log(write_log(tmp_path / "log.csv"))
    _, seconds, probabilities = emotion_log.timeline_curves(rows)[0][0]
    assert seconds.tolist() == [0, 0, 1, 2, 2]
    assert np.allclose(probabilities[:, 0], [0, 0.8, 0.6, 0.4, 0])


def test_script_draws_the_timeline_next_to_the_log(tmp_path, capsys):
    log = write_log(tmp_path / "log.jsonl")
    assert emotion_log.main([str(log)]) == 0
    picture = cv2.imread(str(log.with_name("log-timeline.png")))
    assert picture.shape[1] > 600 and (picture < 250).any(axis=-1).mean() > 0.1
    assert "log-timeline.png" in capsys.readouterr().out
    assert sorted(path.name for path in log.parent.iterdir()) == ["log-timeline.png", log.name]


def test_log_without_faces_removes_the_former_timeline(tmp_path):
    log = write_log(tmp_path / "log.csv", [(number, number / 2, []) for number in range(3)])
    emotion_log.timeline_path(log).write_bytes(b"of another video")
    deleted = f"Deleted {emotion_log.timeline_path(log)}: this log has no timeline."
    assert emotion_log.report([log]).splitlines() == ["0 faces in 3 frames, 0 tracks.", deleted]
    assert not emotion_log.timeline_path(log).exists()


def test_timeline_that_cannot_be_written_leaves_the_summary(tmp_path):
    log = write_log(tmp_path / "log.csv")
    emotion_log.timeline_path(log).mkdir()
    report = emotion_log.report([log])
    assert "Face 1: 2.0 s" in report and "cannot be drawn (Is a directory)" in report


def test_without_matplotlib_the_summary_names_the_command(tmp_path, monkeypatch):
    log = write_log(tmp_path / "log.csv")
    monkeypatch.delitem(sys.modules, "plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    report = emotion_log.report([log])
    assert "Face 1: 2.0 s" in report and "pip install matplotlib" in report
    assert not log.with_name("log-timeline.png").exists()


LITTLE_MEMORY = """
import pathlib, resource, sys, emotion_log, pandas
path = pathlib.Path(sys.argv[1])
rows = emotion_log.read_log(path)
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 1_000_000,) * 2)
print(emotion_log.draw_timeline(rows, emotion_log.timeline_path(path), "python emotion_log.py log.csv"))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's /proc")
def test_timeline_fails_with_one_line_where_memory_is_short(tmp_path):
    """A megabyte is left, in which Matplotlib cannot even be imported."""
    log = write_log(tmp_path / "log.csv")
    command = [sys.executable, "-c", LITTLE_MEMORY, str(log)]
    finished = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert finished.returncode == 0, finished.stderr
    assert "log-timeline.png: cannot be drawn (" in finished.stdout and finished.stdout.count("\n") == 1
    assert finished.stdout.endswith("Try again: python emotion_log.py log.csv\n")
    assert os.listdir(tmp_path) == ["log.csv"]


def test_timeline_that_runs_out_of_memory_leaves_the_summary(tmp_path, monkeypatch):
    import plots

    def draw(*_):
        raise MemoryError

    monkeypatch.setattr(plots, "timeline", draw)
    report = emotion_log.report([write_log(tmp_path / "log.csv")])
    assert "Face 1: 2.0 s" in report and "cannot be drawn (too little memory)" in report


def test_without_pandas_a_line_names_the_command(tmp_path, monkeypatch, capsys):
    log = write_log(tmp_path / "log.csv")
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert emotion_log.main([str(log)]) == 2
    error = capsys.readouterr().err
    assert "pip install pandas matplotlib seaborn" in error and error.count("\n") == 1


# Several logs


@pytest.fixture
def folder(tmp_path):
    """Two logs, one of another model and in a subfolder, and a CSV that is not a log."""
    write_log(tmp_path / "logs" / "a.csv")
    (tmp_path / "logs" / "b").mkdir()
    (tmp_path / "logs" / "b" / "b.jsonl").write_text(
        "".join(
            json.dumps(dict(frame=frame, time_s=frame, track=1, label="Neutral", Happy=0.25, Neutral=0.75)) + "\n"
            for frame in range(3)
        )
    )
    (tmp_path / "logs" / "history.csv").write_text("epoch,loss\n1,0.5\n")
    return tmp_path / "logs"


def test_folder_of_logs_is_summed_up_and_drawn_together(folder, capsys):
    """The faces are seen for 2.5 s in one log and for 3 s in the other."""
    assert emotion_log.main([str(folder)]) == 0
    skipped, *lines = capsys.readouterr().out.splitlines()
    assert skipped.startswith(f"Skipped {folder / 'history.csv'}: not a log of webcam_demo.py (no column frame)")
    assert lines == [
        "8 faces in 8 frames of 2 logs, 3 tracks. Shares of the time that each was seen:",
        "  All: 5.5 s, Neutral 55%, Happy 27%, Sad 18%",
        f"  {folder / 'b' / 'b.jsonl'}, face 1: 3.0 s, Neutral 100%",
        f"  {folder / 'a.csv'}, face 1: 2.0 s, Happy 75%, Sad 25%",
        f"  {folder / 'a.csv'}, face 2: 0.5 s, Sad 100%",
        f"Drew {folder.with_name('logs-timeline.png')}.",
    ]


def test_several_logs_are_summed_up_without_a_timeline(folder, capsys):
    assert emotion_log.main([str(folder / "a.csv"), str(folder / "b")]) == 0
    assert capsys.readouterr().out.startswith("8 faces in 8 frames of 2 logs, 3 tracks.")
    assert not list(folder.parent.rglob("*.png"))


def test_named_file_that_is_not_a_log_is_refused_among_others(folder, capsys):
    assert emotion_log.main([str(folder / "a.csv"), str(folder / "history.csv")]) == 2
    assert "history.csv: not a log" in capsys.readouterr().err


def test_folder_without_logs_is_one_line_and_status_2(tmp_path, capsys):
    assert emotion_log.main([str(tmp_path)]) == 2
    (tmp_path / "history.csv").write_text("epoch,loss\n1,0.5\n")
    assert emotion_log.main([str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("no logs. Name a log of webcam_demo.py") == 2


# Intervals


def test_intervals_hold_when_each_face_had_which_label(log, tmp_path, capsys):
    assert emotion_log.main([str(log), "--intervals", str(tmp_path / "out.csv")]) == 0
    assert (tmp_path / "out.csv").read_text().splitlines() == [
        "track,label,start_s,end_s",
        "1,Happy,0.0,1.5",
        "1,Sad,1.5,2.0",
        "2,Sad,0.5,1.0",
    ]
    assert f"Wrote {tmp_path / 'out.csv'}." in capsys.readouterr().out


def test_interval_ends_where_the_face_is_held_or_away(tmp_path):
    frames = [(i, i / 2, [(1, "Happy", 0.8, i == 1)] * (i != 3)) for i in range(6)]
    intervals = emotion_log.find_intervals(emotion_log.read_log(write_log(tmp_path / "log.csv", frames)))
    assert intervals[["start_s", "end_s"]].to_numpy().tolist() == [[0, 0.5], [1, 1.5], [2, 3]]


def test_intervals_of_several_logs_and_files_name_them(folder, tmp_path):
    write_log(folder / "c.csv", file="=k\u00f6ln.mp4", files=["k\u00f6ln.mp4"])
    emotion_log.report([folder], tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_bytes().startswith(b"\xef\xbb\xbflog,file,track,label,start_s,end_s")
    rows = list(csv.DictReader((tmp_path / "out.csv").open(newline="", encoding="utf-8-sig")))
    assert [Path(row["log"]).name for row in rows] == ["a.csv"] * 3 + ["b.jsonl"] + ["c.csv"] * 3
    assert [row["file"] for row in rows] == [""] * 4 + ["'=k\u00f6ln.mp4"] * 3
    assert (rows[3]["start_s"], rows[3]["end_s"]) == ("0.0", "3.0")


def test_images_have_no_intervals(tmp_path):
    frames = [(0, 0.0, [(1, "Happy", 0.9)]), (1, 0.0, [(1, "Happy", 0.8)])]
    emotion_log.report([write_log(tmp_path / "log.csv", frames)], tmp_path / "out.csv")
    assert (tmp_path / "out.csv").read_text() == "track,label,start_s,end_s\n"


def test_intervals_with_another_suffix_are_refused(tmp_path, capsys):
    log = write_log(tmp_path / "log.csv")
    with pytest.raises(SystemExit) as stop:
        emotion_log.main([str(log), "--intervals", str(tmp_path / "out.txt")])
    assert stop.value.code == 2 and "--intervals must end in .csv, but it is" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["log.csv"]


def test_logs_with_long_paths_stay_apart(tmp_path, capsys):
    folder = tmp_path / ("d" * 120) / ("d" * 120)
    folder.mkdir(parents=True)
    logs = [write_log(folder / name) for name in ("a\nb.csv", "c.csv")]
    before = logs[0].read_bytes()
    assert emotion_log.main([*map(str, logs), "--intervals", str(tmp_path / "out.csv")]) == 0
    assert "of 2 logs" in capsys.readouterr().out
    assert pd.read_csv(tmp_path / "out.csv")["log"].unique().tolist() == list(map(str, logs))
    assert emotion_log.main([str(logs[0]), "--intervals", str(logs[0])]) == 2
    assert "b.csv: one of the logs. Choose" in capsys.readouterr().err and logs[0].read_bytes() == before


def test_frames_of_a_stream_at_the_same_moment_are_not_images(tmp_path, capsys):
    frames = [(0, 0.0, [(1, "Happy", 0.9)]), (1, 0.5, [(1, "Happy", 0.9)]), (2, 0.5, [(1, "Happy", 0.9)])]
    assert emotion_log.main([str(write_log(tmp_path / "log.csv", frames, utc_column=True))]) == 0
    assert "Images" not in capsys.readouterr().out


def test_unreadable_log_of_a_folder_is_skipped(folder, capsys, monkeypatch):
    read_bytes = Path.read_bytes

    def refuse(path):
        if path.name == "history.csv":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)  # The superuser may read every file.
    assert emotion_log.main([str(folder)]) == 0
    assert f"Skipped {folder / 'history.csv'}: Permission denied. Check" in capsys.readouterr().out


@pytest.mark.parametrize("named", ["log.csv", "."])
@pytest.mark.parametrize("intervals", ["log.csv", "{}/log.csv", "sub/../log.csv"])
def test_intervals_never_replace_a_log(tmp_path, monkeypatch, named, intervals, capsys):
    log = write_log(tmp_path / "log.csv")
    (tmp_path / "sub").mkdir()
    before = log.read_bytes()
    monkeypatch.chdir(tmp_path)
    assert emotion_log.main([named, "--intervals", intervals.format(tmp_path)]) == 2
    assert "log.csv: one of the logs. Choose another --intervals." in capsys.readouterr().err
    assert log.read_bytes() == before


def test_folder_of_the_intervals_is_made(log, tmp_path):
    assert emotion_log.main([str(log), "--intervals", str(tmp_path / "new" / "out.csv")]) == 0
    assert (tmp_path / "new" / "out.csv").stat().st_size > 0


def test_log_that_is_named_twice_counts_once(log, capsys):
    assert emotion_log.main([str(log)]) == 0
    once = capsys.readouterr().out
    for names in ([log, log], [log.parent, log]):
        assert emotion_log.main([*map(str, names)]) == 0
        assert capsys.readouterr().out.splitlines()[0] == once.splitlines()[0]


def test_folders_with_a_dot_in_their_names_have_a_timeline_each(tmp_path):
    folders = [tmp_path / "logs.2026", tmp_path / "logs.2027"]
    for folder in folders:
        folder.mkdir()
        write_log(folder / "log.csv")
        assert emotion_log.main([str(folder)]) == 0
    assert {path.name for path in tmp_path.glob("*.png")} == {"logs.2026-timeline.png", "logs.2027-timeline.png"}


def test_name_that_the_terminal_cannot_show_is_escaped(tmp_path, run_script):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    finished = run_script("emotion_log.py", tmp_path / "kr\u00f3l.csv", env=environment)
    assert finished.returncode == 2 and "kr\\xf3l.csv" in finished.stderr
    assert len(finished.stderr.splitlines()) == 1


def test_folders_that_matplotlib_cannot_write_are_no_message(tmp_path, run_script):
    (tmp_path / "file").write_text("")
    names = ("HOME", "MPLCONFIGDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")
    environment = os.environ | dict.fromkeys(names, str(tmp_path / "file" / "folder"))
    finished = run_script("emotion_log.py", write_log(tmp_path / "log.csv"), env=environment)
    assert (finished.returncode, finished.stderr) == (0, "") and "Drew" in finished.stdout


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux has names that are bytes")
def test_c_locale_reads_a_name_beyond_ascii(tmp_path, run_script):
    log = write_log(tmp_path / "kr\u00f3l.csv")
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    finished = run_script("emotion_log.py", log, env=environment)
    assert (finished.returncode, finished.stderr) == (0, "") and finished.stdout.startswith("5 faces in 5 frames")
