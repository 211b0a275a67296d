"""Trains the emotion CNN on FER2013 and writes a model folder.

    python train.py                                the default recipe: 5 classes, data/fer2013.csv
    python train.py --classes 7                    all seven emotions
    python train.py --epochs 12 --output-dir models/short          with the whole schedule scaled to it
    python train.py --resume                       goes on with a run that was stopped or killed
    python train.py --epochs 1 --limit 512 --output-dir models/smoke

Fits on the Training split, keeps the epoch that is best on PublicTest, and never opens PrivateTest.
"""

import argparse
import datetime
import hashlib
import importlib
import importlib.util
import json
import os
import platform
import shutil
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

import utils

# TensorFlow greets with lines on stderr that nobody has to answer; our own would drown in them.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
stderr = os.dup(2)
try:
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    import keras
    from keras import layers
finally:
    os.dup2(stderr, 2)
    os.close(stderr)

# ---------------------------------------------------------------------------------------------------------------------
# The recipe
# ---------------------------------------------------------------------------------------------------------------------

# Network: (filters, convolutions, residual pairs of them) per stage; the picture is halved between stages.
STAGES = ((24, 2, 0), (48, 2, 0), (96, 1, 1), (192, 2, 0))
STAGE_DROPOUT = 0.05  # After every stage but the first, whole channels.
HEAD_DROPOUT = 0.3  # Before the dense layer.
BATCH_NORM_MOMENTUM = 0.9  # Keras's 0.99 lags: in a short run its statistics are still those of the first steps.

# Optimisation: stochastic gradient descent, the rate rising for WARMUP of all steps and falling to zero as a cosine.
PEAK_LEARNING_RATE = 0.1
WARMUP = 0.1
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
LABEL_SMOOTHING = 0.1

# Progressive resizing: (width in pixels, share of the run at which it ends). Small pictures cost half and teach nearly
# as much.
SIZES = ((36, 0.6), (48, 1.0))

# Augmentation, drawn anew for every face and epoch.
MAX_ROTATION = 10  # Degrees.
MAX_SCALE = 0.1  # Share of the face's size.
MAX_SHIFT = 0.08  # Share of the face's size.
MAX_CONTRAST = 0.3  # Share of the distance of each pixel from mid-gray.
ERASING_PROBABILITY = 0.3
ERASING_SIDE = (0.15, 0.4)  # Share of the face's side.

# ---------------------------------------------------------------------------------------------------------------------
# The network
# ---------------------------------------------------------------------------------------------------------------------


def conv_block(x, filters):
    """Convolution, batch normalisation, ReLU."""
    x = layers.Conv2D(filters, 3, padding="same", use_bias=False, kernel_initializer="he_normal")(x)
    x = layers.BatchNormalization(momentum=BATCH_NORM_MOMENTUM)(x)
    return layers.ReLU()(x)


def build_model(num_classes, image_size=utils.IMAGE_SIZE):
    """Builds the CNN.

    Args:
        num_classes: width of the softmax output.
        image_size: width and height of the input in pixels; None takes any size, which only training needs.

    Returns:
        model: `keras.Model` from faces (N, size, size, 1), 0..255, to probabilities (N, num_classes).
    """
    faces = keras.Input((image_size, image_size, 1), name="faces")
    x = layers.Rescaling(1 / 127.5, offset=-1.0)(faces)
    for stage, (filters, convolutions, pairs) in enumerate(STAGES):
        if stage > 0:
            x = layers.MaxPooling2D()(x)  # 48 -> 24 -> 12 -> 6
        for _ in range(convolutions):
            x = conv_block(x, filters)
        for _ in range(pairs):
            x = layers.Add()([x, conv_block(conv_block(x, filters), filters)])
        if stage > 0:
            x = layers.SpatialDropout2D(STAGE_DROPOUT)(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dropout(HEAD_DROPOUT)(x)
    # Without a bias, because OpenCV's importer would leave it out. In float32 under mixed precision too, because a
    # softmax in bfloat16 rounds probabilities to two digits.
    dense = layers.Dense(num_classes, activation="softmax", use_bias=False, dtype="float32", name="probabilities")
    return keras.Model(faces, dense(x), name=f"emotions_{num_classes}")


def count_macs(model):
    """Counts the multiply-adds of one face's forward pass in convolutions and dense layers; the rest is under 2 %."""
    macs = 0
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D):
            _, height, width, _ = layer.compute_output_shape(layer.input.shape)
            macs += height * width * int(np.prod(layer.kernel.shape))
        elif isinstance(layer, layers.Dense):
            macs += int(np.prod(layer.kernel.shape))
    return macs


# ---------------------------------------------------------------------------------------------------------------------
# Augmentation
# ---------------------------------------------------------------------------------------------------------------------


def augment_face(face, size, rng):
    """Flips, turns, scales, shifts, changes the contrast and erases a rectangle of one face.

    Args:
        face: uint8 (48, 48).
        size: width and height of the result in pixels; resizing is part of the same interpolation.
        rng: `np.random.Generator`.

    Returns:
        uint8 (size, size).
    """
    flip, angle = rng.choice((-1, 1)), np.deg2rad(rng.uniform(-MAX_ROTATION, MAX_ROTATION))
    scale = size / utils.IMAGE_SIZE * (1 + rng.uniform(-MAX_SCALE, MAX_SCALE))
    rotation = scale * np.array([[np.cos(angle) * flip, -np.sin(angle)], [np.sin(angle) * flip, np.cos(angle)]])
    shift = rng.uniform(-MAX_SHIFT, MAX_SHIFT, 2) * size
    # The middle of the face lands in the middle of the result, moved by the shift.
    offset = (size - 1) / 2 + shift - rotation @ np.full(2, (utils.IMAGE_SIZE - 1) / 2)
    matrix = np.column_stack([rotation, offset])
    face = cv2.warpAffine(face, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    gain = 1 + rng.uniform(-MAX_CONTRAST, MAX_CONTRAST)
    face = cv2.addWeighted(face, gain, face, 0, 128 * (1 - gain))  # Saturates at 0 and 255.
    if rng.random() < ERASING_PROBABILITY:
        width, height = (rng.uniform(*ERASING_SIDE, 2) * size).astype(int)
        x, y = rng.integers(0, size - width + 1), rng.integers(0, size - height + 1)
        face[y : y + height, x : x + width] = rng.integers(0, 256, (height, width))  # Zhong et al., 2020.
    return face


class AugmentedFaces(keras.utils.PyDataset):
    """Batches of augmented faces and one-hot labels, in an order and with changes fixed by the seed and the epoch."""

    def __init__(self, faces, labels, size, batch_size, seed, epoch):
        super().__init__(workers=1, max_queue_size=16)  # One thread fills the queue while the network trains.
        self.faces, self.labels, self.size, self.batch_size = faces, labels, size, batch_size
        self.seed, self.epoch = seed, epoch

    def __len__(self):
        return len(self.faces) // self.batch_size  # The rest, under one batch, comes in another epoch's order.

    def __getitem__(self, index):
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.faces))
        rows = order[index * self.batch_size : (index + 1) * self.batch_size]
        rng = np.random.default_rng((self.seed, self.epoch, index))
        faces = np.stack([augment_face(self.faces[row, ..., 0], self.size, rng) for row in rows])
        return faces[..., np.newaxis], self.labels[rows]

    def on_epoch_end(self):
        self.epoch += 1


# ---------------------------------------------------------------------------------------------------------------------
# A run, and its state on disk
# ---------------------------------------------------------------------------------------------------------------------


class Run(keras.callbacks.Callback):
    """The state of a training in a folder, written after every epoch, so that a kill costs the epoch it falls into.

    Attributes:
        rows: list of dict, one per finished epoch: the history.
    """

    def __init__(self, folder, settings):
        super().__init__()
        self.folder, self.settings, self.rows = folder, settings, []
        self.epochs, self.seed = settings["epochs"], settings["seed"]

    def restore(self, model, steps_per_epoch):
        """Puts the model where the last finished epoch left it."""
        if (self.folder / "state.weights.h5").exists():
            model.optimizer.build(model.trainable_variables)
            model.load_weights(self.folder / "state.weights.h5")  # The optimizer's state is part of it.
            done = int(model.optimizer.iterations) // steps_per_epoch
            # The history is written before the state: after a kill between the two it is one row ahead.
            self.rows = pd.read_csv(self.folder / "history.csv").to_dict("records")[:done]
            print(f"Going on after epoch {done} of {self.epochs}.")

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.perf_counter()
        # Dropout's random state is not among the saved weights: fixed by the epoch, it is the same after a restart.
        for number, layer in enumerate(self.model.layers):
            if isinstance(layer, layers.Dropout):
                layer.seed_generator.state.assign([(1000 * self.seed + number) % 2**32, 1_000_000 * epoch])

    def on_epoch_end(self, epoch, logs=None):
        best = max((row["val_accuracy"] for row in self.rows), default=-1.0)
        seconds = round(time.perf_counter() - self.started, 1)
        if logs["val_accuracy"] > best:
            replace(self.folder / "best.weights.h5", self.model.save_weights)
        self.rows.append({"epoch": epoch + 1, "size": epoch_size(epoch, self.epochs), "seconds": seconds, **logs})
        replace(self.folder / "history.csv", pd.DataFrame(self.rows).to_csv, index=False)
        replace(self.folder / "state.weights.h5", self.model.save_weights)
        best = self.best_row()
        print(
            f"Epoch {epoch + 1} of {self.epochs}: best validation accuracy {best['val_accuracy']:.4f} "
            f"(epoch {best['epoch']}), about {self.seconds_left() / 60:.0f} min left",
            flush=True,
        )

    def best_row(self):
        """Returns the first of the history's rows with the highest validation accuracy."""
        return max(self.rows, key=lambda row: row["val_accuracy"])

    def seconds_left(self):
        """Estimates the time to the end: an epoch costs as much as its pictures have pixels."""
        seconds_per_pixel = sum(row["seconds"] for row in self.rows) / sum(row["size"] ** 2 for row in self.rows)
        return seconds_per_pixel * sum(
            epoch_size(epoch, self.epochs) ** 2 for epoch in range(len(self.rows), self.epochs)
        )


def replace(path, write, **options):
    """Writes a file so that `path` holds the old content or the new at every moment."""
    temporary = path.with_name(f"new-{path.name}")  # The same ending, by which Keras chooses the format.
    write(temporary, **options)
    os.replace(temporary, path)


def open_run(output_dir, settings, resume):
    """Makes the folder for a run's state, or finds the one to go on with.

    Raises:
        ValueError: `output_dir` holds files that are no model's, or the run there has other settings.
    """
    old = output_dir.with_name(f"{output_dir.name}.old")
    if old.exists() and not output_dir.exists():  # A kill fell between the two renames of `write_model`.
        old.rename(output_dir)
    if output_dir.exists() and not (output_dir.is_dir() and set(os.listdir(output_dir)) <= set(utils.MODEL_PARTS)):
        raise ValueError(f"--output-dir is replaced as a whole: it must be new or a model's. Received: {output_dir}.")
    folder = output_dir.with_name(f"{output_dir.name}.partial")
    stored = folder / "settings.json"
    if resume and stored.exists():
        for name, value in json.loads(stored.read_text(encoding="utf-8")).items():
            if settings[name] != value:
                raise ValueError(f"--resume needs `{name}` as the run began: {value}. Received: {settings[name]}.")
    else:
        if stored.exists():
            print(f"Starting anew; the unfinished training in {folder} is discarded.")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        replace(stored, lambda path: path.write_text(json.dumps(settings), encoding="utf-8"))
    return Run(folder, settings)


def read_description(folder):
    """Returns the content of a folder's `model.json`, an empty dict where it is missing or damaged."""
    try:
        return json.loads((folder / "model.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


def epoch_size(epoch, epochs):
    """Returns the width in pixels of the pictures of an epoch, counted from 0."""
    return next(size for size, end in SIZES if (epoch + 1) / epochs <= end)


def multiplies_bfloat16():
    """Tells whether the hardware multiplies bfloat16: half again as fast as float32 there, far slower elsewhere."""
    if keras.distribution.list_devices("gpu"):
        return True
    cpuinfo = Path("/proc/cpuinfo")  # Linux only: without it, float32 is always right.
    return keras.backend.backend() == "tensorflow" and cpuinfo.exists() and "avx512_bf16" in cpuinfo.read_text()


def compile_model(model, steps):
    """Compiles for a run of `steps` batches."""
    warmup = int(steps * WARMUP)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps - warmup, warmup_target=PEAK_LEARNING_RATE, warmup_steps=warmup
    )
    model.compile(
        keras.optimizers.SGD(schedule, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY),
        keras.losses.CategoricalCrossentropy(label_smoothing=LABEL_SMOOTHING),
        metrics=["accuracy"],
        # On a CPU TensorFlow's own kernels beat XLA's, which draw the random numbers of dropout on one core.
        jit_compile=False if keras.backend.backend() == "tensorflow" else "auto",
    )


def train(data, num_classes, output_dir, epochs, batch_size=128, seed=0, limit=None, resume=False):
    """Trains a model and writes its folder.

    Args:
        data: path of the data set, in any form that `utils.load_fer2013` reads.
        num_classes: 5 or 7.
        output_dir: the model folder, replaced as a whole at the end; the state lies beside it, in `<name>.partial`.
        epochs: length of the run; the learning rate's schedule and the picture sizes scale with it.
        batch_size: faces per step.
        seed: fixes the initial weights, the order, the augmentation and the dropout.
        limit: use only the first `limit` faces of each split.
        resume: go on with the run whose state is there; where there is none, begin one.

    Returns:
        description: dict, the content of `model.json`.

    Raises:
        FileNotFoundError, ValueError: the data cannot be used, or the state belongs to another run.
        KeyboardInterrupt: after Ctrl-C, with the best epoch so far written, unless `output_dir` has a better model.
    """
    train_split, val_split = (utils.load_fer2013(data, split, num_classes, limit) for split in ("train", "val"))
    settings = {"classes": num_classes, "epochs": epochs, "batch_size": batch_size, "seed": seed, "limit": limit}
    settings = describe_settings(data, train_split, settings)
    output_dir = Path(output_dir).resolve()
    finished = read_description(output_dir)
    if resume and not output_dir.with_name(f"{output_dir.name}.partial").joinpath("settings.json").exists():
        if settings.items() <= finished.get("training", {}).items():
            print("This training is finished.")
            return finished
        print("There is no unfinished training to go on with; starting anew.")
    run = open_run(output_dir, settings, resume)
    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy("mixed_bfloat16" if multiplies_bfloat16() else "float32")
    try:
        fit(run, train_split, val_split)
    except KeyboardInterrupt:
        if run.rows and run.best_row()["val_accuracy"] > finished.get("training", {}).get("val_accuracy", 0.0):
            write_model(output_dir, run, train_split, val_split)
        raise
    description = write_model(output_dir, run, train_split, val_split)
    (run.folder / "settings.json").unlink()  # First, so that a kill during the next line leaves no state to go on with.
    shutil.rmtree(run.folder)
    return description


def describe_settings(data, train_split, settings):
    """Returns all that decides how a run goes: the settings, where the data is and its hash, and the recipe."""
    path, (faces, labels) = Path(data).resolve(), train_split
    # Below the repository the place there, because `model.json` is for others to read.
    path = path.relative_to(utils.ROOT) if path.is_relative_to(utils.ROOT) else path
    sha256 = hashlib.sha256(faces.tobytes() + labels.astype("<i8").tobytes()).hexdigest()
    recipe = {name: value for name, value in globals().items() if name.isupper()}
    settings = {"data": path.as_posix(), "data_sha256": sha256, **settings, "recipe": recipe}
    return json.loads(json.dumps(settings))  # Tuples become lists, as they will when they are read back.


def fit(run, train_split, val_split):
    """Trains the epochs that the run does not have behind it, with one `model.fit` per picture size."""
    num_classes, batch_size = run.settings["classes"], min(run.settings["batch_size"], len(train_split[0]))
    targets, val_targets = (keras.utils.to_categorical(labels, num_classes) for _, labels in (train_split, val_split))
    steps_per_epoch = len(targets) // batch_size
    model = build_model(num_classes, image_size=None)
    compile_model(model, steps_per_epoch * run.epochs)
    run.restore(model, steps_per_epoch)
    sizes = [epoch_size(epoch, run.epochs) for epoch in range(run.epochs)]
    while len(run.rows) < run.epochs:
        done = len(run.rows)
        model.fit(
            AugmentedFaces(train_split[0], targets, sizes[done], batch_size, run.seed, done),
            validation_data=(val_split[0], val_targets),
            validation_batch_size=256,
            initial_epoch=done,
            epochs=done + sizes[done:].count(sizes[done]),
            callbacks=[run],
            shuffle=False,
            verbose=1 if sys.stdout.isatty() else 2,
        )


def write_model(output_dir, run, train_split, val_split):
    """Exports the best epoch into `output_dir`, by way of a folder beside it that takes its place when it is complete.

    Returns:
        description: dict, the content of `model.json`.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise ValueError("The export needs TensorFlow. The state is kept: install it and repeat with --resume.")
    new, old = (output_dir.with_name(f"{output_dir.name}.{state}") for state in ("new", "old"))
    for leftover in (new, old):
        shutil.rmtree(leftover, ignore_errors=True)
    new.mkdir()
    keras.config.set_dtype_policy("float32")
    model = build_model(run.settings["classes"])
    model.load_weights(run.folder / "best.weights.h5")
    model.save(new / "model.keras")
    model.export(new / "model.tflite", format="litert", verbose=False)
    pd.DataFrame(run.rows).to_csv(new / "history.csv", index=False)
    description = describe(model, run, train_split)
    (new / "model.json").write_text(json.dumps(description, indent=2), encoding="utf-8")
    # The figure that counts is that of the exported file, which is what evaluate.py scores and the demo runs.
    predicted = utils.load_emotion_model(new).predict(val_split[0]).argmax(axis=1)
    description["training"]["val_accuracy"] = float(np.mean(predicted == val_split[1]))
    (new / "model.json").write_text(json.dumps(description, indent=2), encoding="utf-8")
    if output_dir.exists():
        output_dir.rename(old)
    new.rename(output_dir)
    shutil.rmtree(old, ignore_errors=True)
    return description


def describe(model, run, train_split):
    """Returns the content of `model.json`, but for the validation accuracy."""
    ids = utils.CLASS_SETS[run.settings["classes"]]
    classes = [utils.EMOTIONS[i] for i in ids]
    libraries = (importlib.import_module(keras.backend.backend()), keras, cv2, np)
    return {
        "classes": classes,
        "fer2013_ids": ids,
        "image_size": utils.IMAGE_SIZE,
        "parameters": model.count_params(),
        "macs": count_macs(model),
        "training": {
            **run.settings,
            "precision": "bfloat16" if multiplies_bfloat16() else "float32",
            "rows_per_class": dict(
                zip(classes, np.bincount(train_split[1], minlength=len(classes)).tolist(), strict=True)
            ),
            "versions": {"python": platform.python_version()} | {lib.__name__: lib.__version__ for lib in libraries},
            "date": datetime.date.today().isoformat(),
            "seconds": round(sum(row["seconds"] for row in run.rows)),
            "epochs_done": len(run.rows),
            "best_epoch": run.best_row()["epoch"],
        },
    }


def positive_integer(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1. Received: {text}.")
    return int(text)


def seed_number(text):
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to {2**32 - 1}. Received: {text}.")
    return int(text)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=utils.DEFAULT_DATA, help="data set (default: data/fer2013.csv)")
    parser.add_argument("--classes", type=int, choices=utils.CLASS_SETS, default=5, help="emotions (default: 5)")
    parser.add_argument("--output-dir", type=Path, help="model folder (default: models/emotions-<classes>)")
    parser.add_argument("--epochs", type=positive_integer, default=36, help="length of the run (default: 36)")
    parser.add_argument("--batch-size", type=positive_integer, default=128, help="faces per step (default: 128)")
    parser.add_argument("--seed", type=seed_number, default=0, help="of everything random (default: 0)")
    parser.add_argument("--limit", type=positive_integer, help="use only the first LIMIT faces of each split")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped or killed")
    args = parser.parse_args(argv)
    args.output_dir = args.output_dir or utils.ROOT / "models" / f"emotions-{args.classes}"
    return args


def main(argv=None):
    args = parse_args(argv)
    try:
        description = train(
            args.data, args.classes, args.output_dir, args.epochs, args.batch_size, args.seed, args.limit, args.resume
        )
    except (OSError, ValueError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"Stopped. {args.output_dir} has the best epoch so far or a better model. To go on: --resume",
            file=sys.stderr,
        )
        return 130
    training = description["training"]
    print(
        f"Validation accuracy {training['val_accuracy']:.4f} (PublicTest, epoch {training['best_epoch']}). "
        f"The model is in {args.output_dir}.\n"
        f"Next: python evaluate.py --data {args.data} --model {args.output_dir} --split val"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
