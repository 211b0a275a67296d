"""The state of a training on disk: a kill at any moment costs the epoch it falls into, and no model; used by train.py.

The state lies beside the model folder, in `<name>.partial`; the model folder itself is replaced as a whole, at the end,
by way of the hidden folders `.<name>.new` and `.<name>.old`. What may be missed, an unfinished run or a better model,
is set aside as `<folder>.old1` and so on.
"""

import contextlib
import itertools
import json
import os
import shutil
import signal
import tempfile
import time
import uuid
from pathlib import Path

import keras
import pandas as pd

import utils


class Run(keras.callbacks.Callback):
    """A training whose state is written after every epoch.

    Args:
        folder: where the state is.
        settings: dict, all that decides how the run goes; `seed` is used here.
        sizes: list of int, the width in pixels of the crops of each epoch.
        source: folder of the state to go on with, or None.
        follows: the process only helps another one, which tells how it goes and writes the model.
        owner: content of the state's file of that name, which another training changes when it takes the folder over.

    Attributes:
        rows: list of dict, one per finished epoch: the history.
    """

    def __init__(self, folder, settings, sizes, source, follows=False, owner=None):
        super().__init__()
        self.folder, self.settings, self.sizes, self.rows = folder, settings, sizes, []
        self.source, self.follows, self.owner = source, follows, owner
        self.interrupted = False

    def restore(self, model, steps_per_epoch):
        """Puts the model where the last finished epoch left it."""
        if self.source and (self.source / "state.weights.h5").exists():
            model.optimizer.build(model.trainable_variables)
            model.load_weights(self.source / "state.weights.h5")  # The optimizer's state is part of it.
            done = int(model.optimizer.iterations) // steps_per_epoch
            # The history is written before the state: after a kill between the two it is one row ahead.
            history = pd.read_csv(self.source / "history.csv")
            self.rows = history.to_dict("records")[:done]
            self.tell(f"Going on after epoch {done} of {len(self.sizes)}.")

    def tell(self, text):
        if not self.follows:
            print(text, flush=True)

    @contextlib.contextmanager
    def stops_between_batches(self):
        """Makes Ctrl-C wait for the next batch.

        Raised anywhere, it can crash the process: TensorFlow's compiled code asks Python for shapes when an epoch
        begins, and writes past its memory if an exception comes back.
        """

        def interrupt(signal_number, frame):
            self.interrupted = True
            signal.signal(signal.SIGINT, signal.default_int_handler)  # A second one does not wait.

        if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # A shell's background job ignores it.
            yield
            return
        signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_train_batch_begin(self, batch, logs=None):
        if self.interrupted:
            raise KeyboardInterrupt

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.perf_counter()
        self.model.seed_epoch(self.settings["seed"], epoch)

    def on_epoch_end(self, epoch, logs=None):
        if self.owner and (self.folder / "owner").read_text(encoding="utf-8") != self.owner:
            raise ValueError(
                f"Another training has begun in {self.folder}, so this one ends. Give each an --output-dir."
            )
        best = max((row["val_accuracy"] for row in self.rows), default=-1.0)
        seconds = round(time.perf_counter() - self.started, 1)
        if logs["val_accuracy"] > best:
            with utils.replaced_file(self.folder / "best.weights.h5") as new:
                self.model.network.save_weights(new)
        self.rows.append({"epoch": epoch + 1, "size": self.sizes[epoch], "seconds": seconds, **logs})
        with utils.replaced_file(self.folder / "history.csv") as new:
            pd.DataFrame(self.rows).to_csv(new, index=False)
        with utils.replaced_file(self.folder / "state.weights.h5") as new:
            self.model.save_weights(new)
        best = self.best_row()
        self.tell(
            f"Epoch {epoch + 1} of {len(self.sizes)}: best validation accuracy {best['val_accuracy']:.4f} "
            f"(epoch {best['epoch']}), about {self.seconds_left() / 60:.0f} min left"
        )

    def best_row(self):
        """Returns the first of the history's rows with the highest validation accuracy."""
        return max(self.rows, key=lambda row: row["val_accuracy"])

    def seconds(self):
        """Returns how long the finished epochs took."""
        return sum(row["seconds"] for row in self.rows)

    def seconds_left(self):
        """Estimates the time to the end: an epoch costs as much as its crops have pixels."""
        pixels = [size**2 for size in self.sizes]
        return self.seconds() / sum(pixels[: len(self.rows)]) * sum(pixels[len(self.rows) :])


def open_run(output_dir, settings, sizes, resume, follows=False):
    """Makes the folder for a run's state, or finds the one to go on with.

    Raises:
        ValueError: `output_dir` holds files that are no model's, or the run there has other settings.
    """
    folder = state_folder(output_dir)
    if follows:  # It saves as the others do, because reading variables takes all processes, but where nobody looks.
        return Run(Path(tempfile.mkdtemp()), settings, sizes, folder if resume else None, follows)
    check_replaceable(output_dir)
    stored, owner = folder / "settings.json", uuid.uuid4().hex
    if resume and stored.exists():
        began = json.loads(stored.read_text(encoding="utf-8"))
        for name, (was, received) in differences(began, settings).items():
            remedy = " To do without: --no-soft-labels." if name == "soft_labels" and was is None else ""
            raise ValueError(f"--resume needs `{name}` as the run began: {was}. Received: {received}.{remedy}")
        settings = began  # With the machine it began on.
    else:
        clear(folder)
        folder.mkdir(parents=True)
        with utils.replaced_file(stored) as new:
            new.write_text(json.dumps(settings), encoding="utf-8")
    (folder / "owner").write_text(owner, encoding="utf-8")
    return Run(folder, settings, sizes, folder if resume else None, owner=owner)


def check_replaceable(output_dir):
    """Refuses a folder that holds more than a model, because it is replaced as a whole.

    Raises:
        ValueError: it does, or it is a file.
    """
    allowed = {*utils.MODEL_PARTS, "out_of_fold.npz", ".DS_Store", "desktop.ini", "Thumbs.db"}  # What desktops leave.
    if not output_dir.exists():
        return
    others = set(os.listdir(output_dir)) - allowed if output_dir.is_dir() else {output_dir.name}
    if others:
        raise ValueError(
            f"--output-dir is replaced as a whole: it must be new or a model's. Received: {output_dir} with "
            f"{min(others)}."
        )


def differences(began, settings):
    """Returns the settings that make two runs different ones, a dict from name to the value of each.

    Those that do not: where, on what and from where.
    """
    began, settings = ({**values, **values.get("recipe", {})} for values in (began, settings))
    same_run = ("data", "precision", "versions", "recipe")
    pairs = {name: (value, settings.get(name)) for name, value in began.items() if name not in same_run}
    return {name: (was, received) for name, (was, received) in pairs.items() if was != received}


def clear(folder):
    """Makes place for a new run's state; one with finished epochs is kept, because they may be hours of work."""
    if count_epochs(folder):
        print(f"Starting anew. The unfinished training that was here is now {set_aside(folder)}.")
    shutil.rmtree(folder, ignore_errors=True)


def set_aside(folder):
    """Renames a folder to make place, and returns its new path."""
    names = (folder.with_name(f"{folder.name}.old{number}") for number in itertools.count(1))
    return folder.rename(next(name for name in names if not name.exists()))


def count_epochs(folder):
    """Returns how many epochs the run whose state is in a folder has behind it, 0 where there is none."""
    history = folder / "history.csv"
    return len(history.read_text(encoding="utf-8").splitlines()) - 1 if history.exists() else 0


def is_finished(description, settings):
    """Tells whether a model's description is that of a run with these settings that came to its end."""
    training = description.get("training", {})
    return (
        bool(training)
        and "joined" not in training
        and not differences({**settings, "epochs_done": settings["epochs"]}, training)
    )


def is_unfinished(output_dir):
    """Tells whether there is a run to go on with."""
    return (state_folder(output_dir) / "settings.json").exists()


def close_run(run):
    """Removes the state of a run whose model is written."""
    # First the settings, so that a kill during the next line leaves no state to go on with.
    (run.folder / "settings.json").unlink(missing_ok=True)
    shutil.rmtree(run.folder, ignore_errors=True)  # Windows keeps what another program has open.


def recover(folder):
    """Puts a folder back where a kill fell between the two renames of `replaced_folder`."""
    old = beside(folder, "old")
    if old.exists() and not folder.exists():
        old.rename(folder)


def read_description(folder):
    """Returns the content of a folder's `model.json`, an empty dict where it is missing or damaged."""
    recover(folder)
    try:
        description = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return description if isinstance(description, dict) and isinstance(description.get("training", {}), dict) else {}


def why_keep(folder, training):
    """Returns why a model folder is no worse than a training that would replace it, or None.

    Args:
        training: dict with the `data_sha256` and `val_accuracy` of the new one.
    """
    there = read_description(folder).get("training", {})
    if there.get("data_sha256", training["data_sha256"]) != training["data_sha256"]:
        return "has learned from other faces"
    return "is better" if there.get("val_accuracy", 0.0) > training["val_accuracy"] else None


@contextlib.contextmanager
def replaced_folder(folder):
    """Gives a new folder to write into, which takes the place of `folder` when everything is in it."""
    recover(folder)
    new, old = beside(folder, "new"), beside(folder, "old")
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir()
    yield new
    check_replaceable(folder)  # Once more: hours may have passed.
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def state_folder(output_dir):
    return output_dir.with_name(f"{output_dir.name}.partial")


def beside(folder, state):
    """Returns the place of a folder on its way in or out."""
    return folder.with_name(f".{folder.name}.{state}")
