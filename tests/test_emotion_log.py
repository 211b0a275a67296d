"""A log is written with its columns, read back, refused when damaged, and summed up.

python -m pytest tests/test_emotion_log.py
"""

import csv
import io
import json
import os
import sys
import tempfile
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
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


def write_log(path, frames=FRAMES, **columns):
    log = emotion_log.EmotionLog(path, CLASSES, **columns)
    for number, time_s, faces in frames:
        rows = [
            utils.Face((10, 20, 30, 40), label, max(happy, 1 - happy), {"Happy": happy, "Sad": 1 - happy}, track=track)
            for track, label, happy in faces
        ]
        log.write(number, time_s, "a.mp4", rows, "2026-11-24T12:00:00.000+00:00")
    log.close()
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
    path = write_log(tmp_path / "log.csv", file_column=True, utc_column=True)
    rows = list(csv.reader(path.open(newline="")))
    assert rows[0][0] == "file" and rows[0][-1] == "utc"
    assert rows[1][0] == "a.mp4" and rows[1][-1] == "2026-11-24T12:00:00.000+00:00"


def test_row_is_on_disk_before_the_log_is_closed(tmp_path):
    log = emotion_log.EmotionLog(tmp_path / "log.csv", CLASSES)
    log.write(0, 0.0, None, [])
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 2
    log.close()


def test_former_log_is_kept_until_the_first_frame(tmp_path):
    (tmp_path / "log.csv").write_text("former")
    log = emotion_log.EmotionLog(tmp_path / "log.csv", CLASSES)
    log.close()
    assert (tmp_path / "log.csv").read_text() == "former"
    log.write(0, 0.0, None, [])
    assert (tmp_path / "log.csv").read_text().startswith("frame,")
    log.close()


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
    rows, classes, files = emotion_log.read_log(log)
    assert classes == CLASSES and files == [None]
    assert rows["frame"].tolist() == [0, 1, 1, 2, 3, 4]
    assert rows["track"].tolist() == [1, 1, 2, 1, 1, 0]
    assert [emotion_log.LABELS[label] for label in rows["label"]] == ["Happy", "Happy", "Sad", "Happy", "Sad", ""]
    assert np.allclose(rows["probabilities"][1], [0.7, 0.3])
    assert rows["seconds"].tolist() == [0.5] * 6


def test_frame_counts_at_most_a_second_and_the_last_of_a_file_as_long_as_the_one_before(tmp_path):
    """Two files: frames at 0, 0.2 and 9 s, then at 0 and 0.1 s, then a file of one frame."""
    lines = ["file,frame,time_s,track,label,Happy"]
    for frame, (file, time_s) in enumerate([("a", 0), ("a", 0.2), ("a", 9), ("b", 0), ("b", 0.1), ("c", 0)]):
        lines.append(f"{file},{frame},{time_s},1,Happy,1")
    (tmp_path / "log.csv").write_text("\n".join(lines))
    rows, _, files = emotion_log.read_log(tmp_path / "log.csv")
    assert files == ["a", "b", "c"]
    assert np.allclose(rows["seconds"], [0.2, 1, 1, 0.1, 0.1, 0])


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("log.csv", "a,b\n1,2\n", "no column frame"),
        ("log.csv", "frame,time_s,track,label\n0,0.0,1,Happy\n", "no column Angry"),
        ("log.csv", "frame,time_s,track,label,Happy\n", "no rows"),
        ("log.csv", "", "no rows"),
        ("log.csv", "frame,time_s,track,label,Happy\n0,0.0,1,Happy,0.5\n1,0.1,1\n", "row 2"),
        ("log.csv", "frame,time_s,track,label,Happy\n0,nan,1,Happy,0.5\n", "out of range in row 1"),
        ("log.csv", "frame,time_s,track,label,Happy\n0,0,1,Happy,1e39\n", "out of range in row 1"),
        ("log.csv", "frame,time_s,track,label,Happy\n0,0,99999999999,Happy,0.5\n", "99999999999"),
        ("log.csv", "frame,time_s,track,label,Happy\n0,0,1,Cheerful,0.5\n", "row 1"),
        ("log.csv", "frame,time_s,track,label,Happy\n" + "0" * 70_000, "line 2 has 65,536 characters"),
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
def test_row_that_a_full_disk_cut_off_is_left_out(tmp_path, suffix):
    log = write_log(tmp_path / f"log{suffix}")
    *rows, last, _ = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(rows) + last[:-20])
    assert emotion_log.read_log(log)[0]["frame"].tolist() == [0, 1, 1, 2]


def test_missing_log_is_one_line_and_status_2(tmp_path, capsys):
    assert emotion_log.main([str(tmp_path / "none.csv")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "none.csv: no such file" in error


def test_more_rows_than_the_limit_are_refused_before_they_are_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(emotion_log, "MAX_ROWS", 6)
    emotion_log.read_log(write_log(tmp_path / "log.csv"))
    monkeypatch.setattr(emotion_log, "MAX_ROWS", 5)
    monkeypatch.setattr(emotion_log, "parse_log", None)
    with pytest.raises(ValueError, match="more than 5 rows"):
        emotion_log.read_log(tmp_path / "log.csv")


def test_memory_for_a_row_is_bounded(tmp_path):
    """A row as a dictionary takes 2,000 bytes; as an element of the array, with all that the summary needs, 150."""
    rows = "".join(f"{i},{i / 30:.3f},1,Happy,0.5,0.5\n" for i in range(8000))
    (tmp_path / "log.csv").write_text(f"frame,time_s,track,label,Happy,Sad\n{rows}")
    tracemalloc.start()
    rows, _, files = emotion_log.read_log(tmp_path / "log.csv")
    emotion_log.summarize(rows, files)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(rows) == 8000 and peak < 200 * len(rows)


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
        rows, _, files = emotion_log.read_log(path)
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 600
    else:
        assert np.isfinite(rows["time_s"]).all() and (rows["probabilities"] <= 1).all()
        assert emotion_log.summarize(rows, files)
        for _, seconds, probabilities in emotion_log.timeline_curves(rows, files):
            assert len(seconds) == len(probabilities)


# Summing up


def test_summary_weighs_each_frame_by_its_time(log):
    """Track 1 is happy for 1.5 of its 2 s."""
    rows, _, files = emotion_log.read_log(log)
    assert emotion_log.summarize(rows, files).splitlines() == [
        "5 faces in 5 frames, 2 tracks. Shares of the time that each was seen:",
        "  Face 1: 2.0 s, Happy 75%, Sad 25%",
        "  Face 2: 0.5 s, Sad 100%",
    ]


def test_summary_ignores_row_order_and_byte_order_mark(tmp_path):
    """A spreadsheet may sort the rows by label and mark the file as UTF-8."""
    header, *rows = write_log(tmp_path / "log.csv").read_text().splitlines()
    rows.sort(key=lambda row: row.split(",")[7])
    (tmp_path / "sorted.csv").write_text("\n".join([header, *rows]), encoding="utf-8-sig")
    first, second = (emotion_log.read_log(tmp_path / name) for name in ("log.csv", "sorted.csv"))
    assert emotion_log.summarize(first[0], first[2]) == emotion_log.summarize(second[0], second[2])
    for one, other in zip(
        *(emotion_log.timeline_curves(rows, files) for rows, _, files in (first, second)), strict=True
    ):
        assert np.array_equal(one[1], other[1]) and np.array_equal(one[2], other[2])


def test_summary_lists_the_tracks_seen_longest(tmp_path):
    """Track k is seen in k frames, k up to 15."""
    frames = [(i, i / 10, [(track, "Happy", 0.9) for track in range(1, 16) if i < track]) for i in range(16)]
    rows, _, files = emotion_log.read_log(write_log(tmp_path / "log.csv", frames))
    lines = emotion_log.summarize(rows, files).splitlines()
    assert lines[1].startswith("  Face 15: 1.5 s") and lines[12].startswith("  Face 4: 0.4 s")
    assert lines[13:] == ["  and 3 more, seen for less time"]


def test_images_are_counted_and_have_no_timeline(tmp_path):
    frames = [(0, 0.0, [(1, "Happy", 0.9)]), (1, 0.0, [(1, "Happy", 0.8)]), (2, 0.0, [(1, "Sad", 0.1)])]
    log = write_log(tmp_path / "log.csv", frames, file_column=True)
    assert emotion_log.report(log) == "3 faces in 3 frames: Happy 2, Sad 1."
    assert not emotion_log.timeline_path(log).exists()


def test_log_without_faces_has_a_summary_and_no_timeline(tmp_path):
    log = write_log(tmp_path / "log.csv", [(0, 0.0, []), (1, 0.5, [])])
    assert emotion_log.report(log).startswith("0 faces in 2 frames, 0 tracks.")
    assert not emotion_log.timeline_path(log).exists()


def test_curve_of_one_frame_lasts_as_long_as_the_frame(log):
    rows, _, files = emotion_log.read_log(log)
    name, seconds, probabilities = emotion_log.timeline_curves(rows, files)[1]
    assert name == "Face 2" and seconds.tolist() == [0.5, 0.5, 1.0, 1.0]
    assert np.allclose(probabilities, [[0, 0], [0.1, 0.9], [0.1, 0.9], [0, 0]])


def test_curve_is_zero_while_the_face_is_away(tmp_path):
    here = [(1, "Happy", 0.8)]
    frames = [(0, 0.0, here), (1, 0.5, here), (2, 1.0, []), (3, 1.5, []), (4, 2.0, here), (5, 2.5, [])]
    rows, _, files = emotion_log.read_log(write_log(tmp_path / "log.csv", frames))
    _, seconds, probabilities = emotion_log.timeline_curves(rows, files)[0]
    assert seconds.tolist() == [0, 0, 0.5, 1, 1, 2, 2, 2.5, 2.5]
    assert np.allclose(probabilities[:, 0], [0, 0.8, 0.8, 0.8, 0, 0, 0.8, 0.8, 0])


def test_photograph_in_a_folder_of_videos_has_no_share_of_the_time(tmp_path):
    log = emotion_log.EmotionLog(tmp_path / "log.csv", CLASSES, file_column=True)
    for number, (time_s, file) in enumerate([(0.0, "a.jpg"), (0.0, "b.mp4"), (0.5, "b.mp4")]):
        log.write(
            number, time_s, file, [utils.Face((10, 20, 30, 40), "Happy", 0.8, {"Happy": 0.8, "Sad": 0.2}, track=1)]
        )
    log.close()
    rows, _, files = emotion_log.read_log(tmp_path / "log.csv")
    assert emotion_log.summarize(rows, files).splitlines()[1:] == ["  b.mp4, face 1: 1.0 s, Happy 100%"]
    assert [name for name, *_ in emotion_log.timeline_curves(rows, files)] == ["b.mp4, face 1"]


def test_long_curve_is_drawn_with_fewer_points(tmp_path, monkeypatch):
    """Of four frames every second one is drawn, and both ends."""
    monkeypatch.setattr(emotion_log, "POINTS_DRAWN", 3)
    rows, _, files = emotion_log.read_log(write_log(tmp_path / "log.csv"))
    _, seconds, probabilities = emotion_log.timeline_curves(rows, files)[0]
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
    log = emotion_log.EmotionLog(tmp_path / "log.csv", CLASSES)
    for number in range(3):
        log.write(number, number / 2, None, [])
    log.close()
    emotion_log.timeline_path(log.path).write_bytes(b"of another video")
    assert emotion_log.report(log.path) == "0 faces in 3 frames, 0 tracks."
    assert not emotion_log.timeline_path(log.path).exists()


def test_timeline_that_cannot_be_written_leaves_the_summary(tmp_path):
    log = write_log(tmp_path / "log.csv")
    emotion_log.timeline_path(log).mkdir()
    report = emotion_log.report(log)
    assert "Face 1: 2.0 s" in report and "cannot be written" in report


def test_without_matplotlib_the_summary_names_the_command(tmp_path, monkeypatch):
    log = write_log(tmp_path / "log.csv")
    monkeypatch.delitem(sys.modules, "plots", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    report = emotion_log.report(log)
    assert "Face 1: 2.0 s" in report and "pip install matplotlib" in report
    assert not log.with_name("log-timeline.png").exists()


def test_name_that_the_terminal_cannot_show_is_escaped(tmp_path, run_script):
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    finished = run_script("emotion_log.py", tmp_path / "kr\u00f3l.csv", env=environment)
    assert finished.returncode == 2 and "kr\\xf3l.csv" in finished.stderr
    assert len(finished.stderr.splitlines()) == 1
