"""Saves the state of a training after every epoch. Used by train.py.

A killed run loses at most the current epoch. The state is one file, `<model folder>.partial/state.npz`. The new model
is built in `<model folder>.partial/model`. `<model folder>.partial/lock` prevents two runs at once. The replaced model
is kept as `<model folder>.previous`.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
import sys
import time

import keras
import numpy as np

import cli
import utils

MODEL_FILES = {"model.tflite", "model.json", "model.keras", "history.csv"}
STATE_FILES = {"state.npz", "lock", "model"}
# Settings that may differ when a run is resumed. `precision` and `versions` are kept from its beginning.
NOT_COMPARED = {"data", "votes", "precision", "versions", "constants"}  # Constants are compared one by one.


class Checkpoint(keras.callbacks.Callback):
    """Saves the state after every epoch, keeps the best weights, and stops between batches after Ctrl-C.

    Args:
        output_dir: the model folder; the state folder is next to it.
        config: dict, everything that determines the run.
        sizes: list of int, the crop size of each epoch in pixels.

    Attributes:
        rows: list of dict, the history: one row per finished epoch.
        best_weights: list of arrays, the network's weights after the best epoch.
    """

    def __init__(self, output_dir, config, sizes):
        super().__init__()
        self.folder, self.config, self.sizes = state_folder(output_dir), config, sizes
        self.rows, self.best_weights, self.interrupted = [], [], False

    def start(self, resume):
        """Prepares the state folder for a new run, or loads the state of an interrupted one.

        Returns:
            weights: list of arrays for `set_weights`; empty for a new run.

        Raises:
            ValueError: the state is damaged or belongs to a run with another config.
        """
        if resume and (self.folder / "state.npz").is_file():
            began, self.rows, weights, self.best_weights = load_state(self.folder / "state.npz")
            check_same_run(began, self.config)
            self.config = self.config | {name: began[name] for name in ("precision", "versions")}
            print(f"Resuming after epoch {len(self.rows)} of {len(self.sizes)}.", flush=True)
            return weights
        if resume:
            print(f"{utils.printable(self.folder)} holds no state. Starting a new run.", flush=True)
        elif (self.folder / "state.npz").is_file():
            name = utils.printable(self.folder)
            print(f"{name} holds an unfinished training run. The first epoch replaces it. To continue, add --resume.")
        shutil.rmtree(self.folder / "model", ignore_errors=True)
        return []

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.perf_counter()
        self.model.seed_epoch(self.config["seed"], epoch)

    def on_train_batch_begin(self, batch, logs=None):
        if self.interrupted:
            if sys.stdout.isatty():
                print(flush=True)  # Ends the line of the progress bar.
            raise KeyboardInterrupt("To continue, repeat the command with --resume.")

    def on_epoch_end(self, epoch, logs=None):
        seconds = round(time.perf_counter() - self.started, 1)
        self.rows.append({"epoch": epoch + 1, "size": self.sizes[epoch], "seconds": seconds, **name_heads(logs)})
        if self.best_row() is self.rows[-1]:
            self.best_weights = get_weights(self.model.network.variables)
        weights = get_weights(self.model.variables + self.model.optimizer.variables)
        save_state(self.folder / "state.npz", self.config, self.rows, weights, self.best_weights)
        print(f"Best epoch: {self.best_row()['epoch']}. About {self.minutes_left():.0f} minutes left.", flush=True)
        # `fit` ends where the crop size changes, because each size compiles its own step.
        self.model.stop_training = epoch + 1 < len(self.sizes) and self.sizes[epoch + 1] != self.sizes[epoch]

    def best_row(self):
        """Returns the first row with the highest validation accuracy, averaged over the heads."""
        return max(self.rows, key=mean_accuracy)

    def minutes_left(self):
        """Returns an estimate in minutes. The cost of an epoch is proportional to the pixels of its crops."""
        pixels, done = np.square(self.sizes), len(self.rows)
        return sum(row["seconds"] for row in self.rows) / pixels[:done].sum() * pixels[done:].sum() / 60

    @contextlib.contextmanager
    def interrupt_between_batches(self):
        """Delays a signal until the next batch. A second signal interrupts at once.

        Raising KeyboardInterrupt inside TensorFlow's compiled code can crash the process.
        """

        def interrupt(number, frame):
            self.interrupted = True
            signal.signal(number, signal.default_int_handler)
            text = "Stopping after this batch." if len(self.rows) < len(self.sizes) else "Finishing the export first."
            with contextlib.suppress(OSError):  # Not print(), which the signal may have interrupted.
                os.write(2, f"{os.linesep * sys.stdout.isatty()}{text}{os.linesep}".encode())

        deferred = [number for number in cli.SIGNALS if signal.getsignal(number) is signal.default_int_handler]
        for number in deferred:
            signal.signal(number, interrupt)
        try:
            yield
        finally:
            for number in deferred:
                signal.signal(number, signal.default_int_handler)


def name_heads(logs):
    """Returns Keras's logs with the head in every name. Keras leaves it out if there is only one head."""
    if "accuracy" in logs:
        return {name.replace("accuracy", "labels_accuracy").replace("loss", "labels_loss"): logs[name] for name in logs}
    return {name: value for name, value in logs.items() if name not in ("loss", "val_loss")}


def mean_accuracy(row):
    """Returns the validation accuracy of a row of the history, averaged over the heads."""
    return np.mean([row[f"val_{head}_accuracy"] for head in utils.HEADS if f"val_{head}_accuracy" in row])


# The state file -------------------------------------------------------------------------------------------------------


def get_weights(variables):
    """Returns the values of Keras variables, list of arrays."""
    # Via tensors, because NumPy warns about TensorFlow variables.
    return [keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(variable)) for variable in variables]


def set_weights(variables, weights):
    """Assigns arrays to Keras variables, in the order of `get_weights`."""
    for variable, value in zip(variables, weights, strict=True):
        variable.assign(value)


def save_state(path, config, rows, weights, best_weights):
    """Writes the state in one step, as an .npz file followed by the SHA-256 of its bytes.

    Not as a Keras HDF5 file, because writing it to a full disk crashes.
    """
    arrays = {f"weights_{i}": value for i, value in enumerate(weights)}
    arrays |= {f"best_{i}": value for i, value in enumerate(best_weights)}
    content = io.BytesIO()
    np.savez(content, header=np.array(json.dumps({"config": config, "rows": rows})), **arrays)
    with cli.replaced(path) as temporary, open(temporary, "wb") as file:
        file.write(content.getbuffer())
        file.write(hashlib.sha256(content.getbuffer()).digest())


def load_state(path):
    """Returns config, rows, weights and best weights, as `save_state` wrote them.

    Raises:
        ValueError: the file is damaged.
    """
    content = memoryview(path.read_bytes())
    if hashlib.sha256(content[:-32]).digest() != content[-32:]:
        raise ValueError(f"{utils.printable(path)}: damaged. Start again without --resume.")
    with np.load(io.BytesIO(content[:-32])) as archive:
        arrays = dict(archive)
    header = json.loads(str(arrays.pop("header")))
    prefixes = ("weights_", "best_")
    weights, best = ([arrays[name] for name in arrays if name.startswith(prefix)] for prefix in prefixes)
    return header["config"], header["rows"], weights, best


def check_same_run(began, config):
    """Checks that a resumed run has the config with which it began.

    Raises:
        ValueError: the configs differ. The message names the first difference.
    """
    began, config = ({**each, **each.get("constants", {})} for each in (began, config))
    for name in sorted((began.keys() | config.keys()) - NOT_COMPARED):
        if began.get(name) != config.get(name):
            raise ValueError(
                f"Cannot resume: `{name}` was {utils.shorten(began.get(name))} when the run began, now "
                f"{utils.shorten(config.get(name))}. Repeat the first command, or start again without --resume."
            )


# The model folder -----------------------------------------------------------------------------------------------------


def state_folder(output_dir):
    """Returns the folder for the state of an unfinished training run."""
    return output_dir.with_name(f"{output_dir.name}.partial")


def previous_folder(output_dir):
    """Returns the folder of the model that the last training run replaced."""
    return output_dir.with_name(f"{output_dir.name}.previous")


def check_folder(folder, files, markers):
    """Checks that train.py wrote a folder, before replacing or deleting it.

    Args:
        files: set of str, the names that train.py may have written there. Hidden files are ignored.
        markers: set of str. A folder that is not empty must contain at least one of these names.

    Raises:
        ValueError: train.py did not write the folder. The message says why.
    """
    if not folder.exists():
        return
    name = utils.printable(folder)
    if not folder.is_dir():
        raise ValueError(f"{name}: not a folder. Choose another --output-dir.")
    found = {entry for entry in os.listdir(folder) if not entry.startswith(".")}
    if found - files:
        problem = f"contains {utils.printable(min(found - files))}, which train.py did not write"
    elif found and not found & markers:
        problem = f"contains no {min(markers)}, so train.py did not write it"
    else:
        return
    raise ValueError(f"{name} {problem}. Choose another --output-dir.")


def check_folders(output_dir):
    """Checks that a training run may replace its folders."""
    if not output_dir.name:
        raise ValueError(f"--output-dir must be a folder with a name, but it is {output_dir}.")
    check_folder(state_folder(output_dir), STATE_FILES, {"state.npz", "lock"})
    check_folder(state_folder(output_dir) / "model", MODEL_FILES, MODEL_FILES)  # May be incomplete.
    for folder in (output_dir, previous_folder(output_dir)):
        check_folder(folder, MODEL_FILES, {"model.json"})


@contextlib.contextmanager
def locked(output_dir):
    """Locks the state folder. Deletes it at the end, unless there was an error.

    The lock is the operating system's, so a kill releases it.

    Raises:
        ValueError: another run is using the folder.
    """
    folder = state_folder(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "ab") as file:
        if not cli.lock(file):
            problem = "another training run is using it. Wait until it ends, or choose another --output-dir"
            raise ValueError(f"{utils.printable(folder)}: {problem}.")
        yield
    shutil.rmtree(folder, ignore_errors=True)  # On Windows, files that another program has open stay.


def complete_replacement(output_dir):
    """Moves a finished model into place if a run was killed between the two renames of `replace_model`."""
    new = state_folder(output_dir) / "model"
    if not output_dir.exists() and previous_folder(output_dir).exists() and (new / "model.json").exists():
        cli.rename(new, output_dir)


def replace_model(output_dir):
    """Moves the finished model into place. The existing model becomes `<name>.previous`."""
    check_folders(output_dir)
    if output_dir.exists():
        for name in sorted(MODEL_FILES - {"model.json"}):  # Last, because it marks a model folder.
            (previous_folder(output_dir) / name).unlink(missing_ok=True)
        shutil.rmtree(previous_folder(output_dir), ignore_errors=True)
        cli.rename(output_dir, previous_folder(output_dir))
    cli.rename(state_folder(output_dir) / "model", output_dir)
