"""The state of a training survives kills and full disks, and no file of the user is touched.

python -m pytest tests/test_checkpoint.py
"""

import os
import shutil
import signal
import sys
import types
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import checkpoint
import utils

CONFIG = {
    "seed": 0,
    "epochs": 3,
    "data": "a.csv",
    "precision": "float32",
    "versions": {},
    "constants": {"MOMENTUM": 0.9},
}


def write_state(path, epochs=1):
    weights = [np.arange(6, dtype=np.float32).reshape(2, 3), np.array(7, np.int64)]
    rows = [{"epoch": epoch + 1, "val_labels_accuracy": 0.5} for epoch in range(epochs)]
    checkpoint.save_state(path, CONFIG, rows, weights, weights[:1])
    return rows, weights


def test_state_is_read_as_it_was_written(tmp_path):
    rows, weights = write_state(tmp_path / "state.npz", epochs=2)
    config, read_rows, read_weights, best = checkpoint.load_state(tmp_path / "state.npz")
    assert config == CONFIG and read_rows == rows
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(read_weights, weights, strict=True))
    assert len(best) == 1 and np.array_equal(best[0], weights[0])


@settings(max_examples=60, deadline=None)
@given(position=st.floats(0, 0.999), bit=st.integers(0, 7), cut=st.booleans())
def test_damaged_state_is_one_line(tmp_path_factory, position, bit, cut):
    path = tmp_path_factory.mktemp("state") / "state.npz"
    write_state(path)
    content = bytearray(path.read_bytes())
    index = int(position * len(content))
    content[index] ^= 1 << bit
    path.write_bytes(content[:index] if cut else content)
    with pytest.raises(ValueError, match="state.npz: damaged. Start again without --resume") as caught:
        checkpoint.load_state(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 1}, "Cannot resume: `seed` was 0 when the run began, now 1."),
        ({"epochs": 4}, "`epochs` was 3"),
        ({"constants": {"MOMENTUM": 0.8}}, "`MOMENTUM` was 0.9 when the run began, now 0.8."),
    ],
)
def test_resume_with_another_config_is_refused(changed, message):
    with pytest.raises(ValueError) as caught:
        checkpoint.check_same_run(CONFIG, CONFIG | changed)
    assert message in str(caught.value)


def test_resume_elsewhere_is_allowed_and_keeps_the_precision(tmp_path):
    (tmp_path / "model.partial").mkdir()
    write_state(tmp_path / "model.partial" / "state.npz")
    elsewhere = CONFIG | {"data": "b.csv", "precision": "mixed_bfloat16"}
    state = checkpoint.Checkpoint(tmp_path / "model", elsewhere, [40, 48, 48])
    assert len(state.start(resume=True)) == 2 and len(state.rows) == 1
    assert state.config["precision"] == "float32"


def test_new_run_keeps_the_old_state_until_its_first_epoch_and_says_so(tmp_path, capsys):
    (tmp_path / "model.partial").mkdir()
    write_state(tmp_path / "model.partial" / "state.npz")
    (tmp_path / "model.partial" / "model").mkdir()
    assert checkpoint.Checkpoint(tmp_path / "model", CONFIG, [48]).start(resume=False) == []
    assert os.listdir(tmp_path / "model.partial") == ["state.npz"]
    assert "holds an unfinished training run" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["model", "model.partial", "model.previous"])
def test_folder_with_foreign_files_is_never_replaced(tmp_path, name):
    (tmp_path / name).mkdir()
    (tmp_path / name / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="contains notes.txt, which train.py did not write"):
        checkpoint.check_folders(tmp_path / "model")
    assert (tmp_path / name / "notes.txt").read_text() == "mine"


def test_root_folder_cannot_be_replaced():
    with pytest.raises(ValueError, match="a folder with a name"):
        checkpoint.check_folders(Path("/"))


def test_files_of_a_user_one_level_down_are_refused(tmp_path):
    make_new_model(tmp_path)
    checkpoint.check_folders(tmp_path / "model")
    (tmp_path / "model.partial" / "model" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="contains thesis.txt, which train.py did not write"):
        checkpoint.check_folders(tmp_path / "model")


@pytest.mark.parametrize(
    ("folder", "name", "missing"),
    [
        ("model", "model.keras", "model.json"),
        ("model.previous", "history.csv", "model.json"),
        ("model.partial", "model", "lock"),
    ],
)
def test_folder_without_the_marker_is_refused(tmp_path, folder, name, missing):
    """A user's own folder may hold a file with one of our names."""
    (tmp_path / folder).mkdir()
    checkpoint.check_folders(tmp_path / "model")
    (tmp_path / folder / name).touch()
    with pytest.raises(ValueError, match=f"contains no {missing}, so train.py did not write it"):
        checkpoint.check_folders(tmp_path / "model")


def test_hidden_files_do_not_stop_a_training(tmp_path):
    make_model(tmp_path / "model", "former")
    (tmp_path / "model" / ".DS_Store").write_text("")
    checkpoint.check_folders(tmp_path / "model")


def test_second_run_is_refused_until_the_first_ends(tmp_path):
    folder = tmp_path / "model"
    with checkpoint.locked(folder):
        with (
            pytest.raises(ValueError, match="model.partial: another training run is using it"),
            checkpoint.locked(folder),
        ):
            pass
        assert folder.with_name("model.partial").exists()
    assert not folder.with_name("model.partial").exists()
    with checkpoint.locked(folder):
        assert folder.with_name("model.partial").exists()


def test_state_stays_after_an_error(tmp_path):
    with pytest.raises(KeyboardInterrupt), checkpoint.locked(tmp_path / "model"):
        write_state(tmp_path / "model.partial" / "state.npz")
        raise KeyboardInterrupt
    assert (tmp_path / "model.partial" / "state.npz").exists()


def test_half_written_state_does_not_stop_resuming(tmp_path):
    (tmp_path / "model.partial").mkdir()
    (tmp_path / "model.partial" / ".new-1-state.npz").write_bytes(b"half")
    (tmp_path / "model.partial" / "lock").touch()
    checkpoint.check_folders(tmp_path / "model")


def make_model(folder, text):
    folder.mkdir(parents=True)
    (folder / "model.json").write_text(text)


def make_new_model(folder):
    """Writes the model of a training that has finished but not replaced the former one."""
    make_model(folder / "model.partial" / "model", "new")
    (folder / "model.partial" / "lock").touch()


def test_kill_while_the_oldest_model_is_deleted_blocks_nothing(tmp_path, monkeypatch):
    """The file that marks the folder as a model's is deleted last."""
    make_model(tmp_path / "model.previous", "oldest")
    (tmp_path / "model.previous" / "model.keras").write_text("oldest")
    make_model(tmp_path / "model", "former")
    make_new_model(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *_, **__: signal.raise_signal(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            checkpoint.replace_model(tmp_path / "model")
    assert os.listdir(tmp_path / "model.previous") == ["model.json"]
    checkpoint.replace_model(tmp_path / "model")
    assert (tmp_path / "model" / "model.json").read_text() == "new"


def test_former_model_becomes_previous(tmp_path):
    make_model(tmp_path / "model.previous", "oldest")
    make_model(tmp_path / "model", "former")
    make_new_model(tmp_path)
    checkpoint.replace_model(tmp_path / "model")
    assert (tmp_path / "model" / "model.json").read_text() == "new"
    assert (tmp_path / "model.previous" / "model.json").read_text() == "former"


@pytest.mark.parametrize("finish", [checkpoint.replace_model, checkpoint.complete_replacement])
def test_new_model_takes_an_empty_place(tmp_path, finish):
    """The former model was moved away, by the user or between the two renames of a run that was killed."""
    make_model(tmp_path / "model.previous", "former")
    make_new_model(tmp_path)
    finish(tmp_path / "model")
    assert (tmp_path / "model" / "model.json").read_text() == "new"
    assert (tmp_path / "model.previous" / "model.json").read_text() == "former"


def test_files_that_appear_during_training_are_not_replaced(tmp_path):
    make_new_model(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="notes.txt"):
        checkpoint.replace_model(tmp_path / "model")
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine"
    assert (tmp_path / "model.partial" / "model" / "model.json").read_text() == "new"


def test_best_row_averages_the_heads():
    state = checkpoint.Checkpoint(utils.ROOT / "none", CONFIG, [48, 48])
    state.rows = [
        {"epoch": 1, "val_labels_accuracy": 0.7, "val_votes_accuracy": 0.8},
        {"epoch": 2, "val_labels_accuracy": 0.6, "val_votes_accuracy": 0.95},
        {"epoch": 3, "val_labels_accuracy": 0.64, "val_votes_accuracy": 0.9},
    ]
    assert state.best_row()["epoch"] == 2


def test_time_left_follows_the_pixels_of_the_crops():
    """Two epochs of 100 s at 40 pixels; one at 48 pixels costs 100 * (48 / 40) ** 2 = 144 s = 2.4 minutes."""
    state = checkpoint.Checkpoint(utils.ROOT / "none", CONFIG, [40, 40, 48])
    state.rows = [{"seconds": 100.0}, {"seconds": 100.0}]
    assert state.minutes_left() == pytest.approx(2.4)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_full_disk_keeps_the_last_state(tmp_path):
    """A file may have 1 MB: a state of 400 kB fits, one of 2 MB does not."""
    import resource

    path, limits = tmp_path / "state.npz", resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoint.save_state(path, {}, [], [np.zeros(100_000, np.float32)], [])
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            checkpoint.save_state(path, {}, [], [np.ones(500_000, np.float32)], [])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(checkpoint.load_state(path)[2][0]) == 100_000
    assert list(tmp_path.iterdir()) == [path]


def test_weights_of_the_best_epoch_are_kept(tmp_path):
    state, weight = checkpoint.Checkpoint(tmp_path / "model", CONFIG, [48] * 3), keras.Variable(0.0)
    (tmp_path / "model.partial").mkdir()
    state.start(resume=False)
    optimizer, network = types.SimpleNamespace(variables=[]), types.SimpleNamespace(variables=[weight])
    state.set_model(types.SimpleNamespace(network=network, variables=[weight], optimizer=optimizer, seed_epoch=max))
    for epoch, accuracy in enumerate((0.5, 0.7, 0.6)):
        state.on_epoch_begin(epoch)
        weight.assign(epoch)
        state.on_epoch_end(epoch, {"val_labels_accuracy": accuracy})
    _, rows, weights, best_weights = checkpoint.load_state(tmp_path / "model.partial" / "state.npz")
    assert (len(rows), weights, best_weights) == (3, [2], [1])
