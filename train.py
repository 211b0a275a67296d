"""Trains the emotion CNN on FER2013 and writes a model folder.

    python train.py                                       five classes, data/fer2013.csv
    python train.py --votes data/fer2013new.csv           learns from the votes of FER+ too
    python train.py --classes 7                           all seven emotions
    python train.py --resume                              continues a run that was stopped or killed
    python train.py --epochs 12                           a quick run; the whole schedule is scaled

Fits on the Training split and keeps the epoch that is best on PublicTest. PrivateTest has no influence.
"""

import contextlib
import datetime
import hashlib
import importlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

import cli

if __name__ == "__main__":
    cli.handle_signals(signal.SIG_DFL)  # Ctrl-C ends the imports at once. `cli.run_script` handles it later.
    packages = ["tensorflow"] if os.environ.get("KERAS_BACKEND", "tensorflow") == "tensorflow" else []
    packages += ["ai_edge_litert", "cv2", "keras", "pandas", "sklearn"]
    cli.check_installed("train.py", "requirements.txt", *packages)
    print("Loading TensorFlow.", flush=True)

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's messages would bury ours.
import utils

# Some messages appear before TensorFlow reads the variable.
with utils.quiet_stderr() if __name__ == "__main__" else contextlib.nullcontext():
    import keras

import cv2
import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

import checkpoint
import cnn
import fer2013

# Width of the crops in pixels, and the share of the run at which each size ends. Crops of 40 pixels cost two thirds of
# whole faces. Whole faces scaled to 36 pixels were 1.0 point worse (`crops` in models/trials.csv).
CROP_SIZES = ((40, 0.75), (48, 1.0))
PEAK_LEARNING_RATE = 0.1  # Reached after the warm-up. Then the rate falls to 0 along a cosine.
WARMUP = 0.05  # Share of all steps.
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-3  # Equals the usual 5e-4 / (1 - 0.9), because Keras applies it outside the momentum.
LABEL_SMOOTHING = 0.1  # For the labels only: votes are already a distribution.
VOTE_POWER = 2  # Exponent of the vote shares in Training: 6 to 4 becomes 9 to 4, which favors the majority.
# The demo's bias is -tau * log(share of the training votes). Tau is the smallest of these whose mean recall on the
# consensus of PublicTest is within RECALL_MARGIN of the highest.
TAUS = tuple(step / 20 for step in range(21))
RECALL_MARGIN = 0.002
MIN_SHARE = 1e-3  # Least share of the votes, for classes without votes in small data.
# The output `face` learns to tell faces from the parts of faces in which the frontal cascade sees a face.
PART_FACES = 2500  # Number of Training faces that are compared with their own parts.
PART_SIZES = (24, 72)  # The smallest and the largest part, in pixels of a face enlarged to 144.
FACE_REGULARIZATION = 0.3  # `C` of scikit-learn's logistic regression.


class ShuffledFaces(keras.utils.PyDataset):
    """Batches of faces, and of targets and sample weights per head, shuffled by seed and epoch."""

    def __init__(self, faces, targets, sample_weights, batch_size, seed, epoch):
        # With one worker, tf.data's tuner delays some epochs by half a minute. With two, JAX and PyTorch begin a
        # resumed run with batches of another order.
        super().__init__(workers=2 if keras.backend.backend() == "tensorflow" else 1)
        self.arrays, self.batch_size, self.seed, self.epoch = (faces, targets, sample_weights), batch_size, seed, epoch
        self.shuffle()

    def __len__(self):
        return len(self.order) // self.batch_size  # Drops the last, incomplete batch.

    def __getitem__(self, index):
        rows = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        return keras.tree.map_structure(lambda array: array[rows], self.arrays)

    def shuffle(self):
        self.order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.arrays[0]))

    def on_epoch_end(self):
        self.epoch += 1
        self.shuffle()


def load_splits(data, votes_path, num_classes, limit=None):
    """Loads Training and PublicTest.

    In Training, labels are smoothed and votes sharpened. The weight of a face's votes is the share that falls on the
    classes. In PublicTest, the votes of faces without a consensus have weight 0, and the mean weight is 1.

    Args:
        data: `fer2013.Dataset`.
        votes_path: `fer2013new.csv`, or None for a network without the votes head.

    Returns:
        dict of "train" and "val" to faces, uint8 (N, 48, 48, 1), and two dicts of head to targets, float32 (N, C), and
        to sample weights, float32 (N,).
    """
    votes, splits = data.read_votes(votes_path) if votes_path else None, {}
    for split, smoothing, power in (("train", LABEL_SMOOTHING, VOTE_POWER), ("val", 0, 1)):
        faces, labels = data.select(split, num_classes, limit)
        one_hot = np.eye(num_classes, dtype=np.float32)[labels]
        targets = {"labels": one_hot + smoothing * (1 / num_classes - one_hot)}
        sample_weights = {"labels": np.ones(len(labels), np.float32)}
        if votes:
            shares, weights, consensus = votes.select(split, num_classes, limit)
            sharpened = shares**power
            targets["votes"] = sharpened / np.maximum(sharpened.sum(axis=1, keepdims=True), 1e-6)
            counted = np.float32(consensus >= 0)  # Scaled, because Keras divides the loss by the number of all faces.
            sample_weights["votes"] = weights if split == "train" else counted / max(counted.mean(), 1e-6)
        splits[split] = faces, targets, sample_weights
    return splits


def list_crop_sizes(epochs):
    """Returns the crop size of each epoch in pixels, list of int."""
    return [next(size for size, end in CROP_SIZES if (epoch + 1) / epochs <= end) for epoch in range(epochs)]


def compile_model(model, heads, steps):
    """Compiles a model with one loss per head, equally weighted.

    Args:
        heads: names of the outputs.
        steps: batches of the whole run, which the learning rate follows.
    """
    warmup = int(steps * WARMUP)
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps - warmup, warmup_target=PEAK_LEARNING_RATE, warmup_steps=warmup
    )
    model.compile(
        keras.optimizers.SGD(schedule, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY),
        loss={head: keras.losses.CategoricalCrossentropy(from_logits=True) for head in heads},
        weighted_metrics={head: ["accuracy"] for head in heads},
        # On a CPU, XLA generates dropout's random numbers on one core and is three times slower.
        jit_compile=False if keras.backend.backend() == "tensorflow" else "auto",
    )


def fit(state, splits, initial_weights):
    """Trains the remaining epochs, with one `model.fit` per crop size.

    Args:
        state: `checkpoint.Checkpoint`.
        splits: from `load_splits`.
        initial_weights: weights of an interrupted run, or an empty list.
    """
    config, epochs = state.config, len(state.sizes)
    faces, targets, _ = splits["train"]
    keras.utils.set_random_seed(config["seed"])
    keras.config.set_dtype_policy(config["precision"])
    model = cnn.AugmentedModel(cnn.build_model(config["classes"], tuple(targets), image_size=None))
    compile_model(model, targets, len(faces) // config["batch_size"] * epochs)
    model.optimizer.build(model.trainable_variables)
    device = str(model.trainable_variables[0].value.device).rpartition("device:")[2]
    print(f"Training on {device} in {config['precision']}.", flush=True)
    if initial_weights:
        checkpoint.set_weights(model.variables + model.optimizer.variables, initial_weights)
    while len(state.rows) < epochs:
        done = len(state.rows)
        model.set_size(state.sizes[done])
        model.fit(
            ShuffledFaces(*splits["train"], config["batch_size"], config["seed"], done),
            validation_data=splits["val"],
            validation_batch_size=256,
            initial_epoch=done,
            epochs=epochs,
            callbacks=[keras.callbacks.ProgbarLogger(), state],  # The epoch's line ends before `state` prints.
            shuffle=False,
            verbose=1 if sys.stdout.isatty() else 2,
        )


def make_config(data, votes, splits, options):
    """Returns everything that determines a run, as it is stored in the state and in model.json.

    `data` and `votes` are paths. `options` is a dict of the other command-line options.
    """
    constants = {**vars(cnn), **globals()}.items()
    libraries = (importlib.import_module(keras.backend.backend()), keras, np)
    config = {
        "data": relative_path(data),
        "votes": votes and relative_path(votes),
        **options,
        "constants": {name: value for name, value in constants if name.isupper()},
        "precision": choose_precision(),
        "versions": {library.__name__: library.__version__ for library in libraries},
        "data_sha256": {
            split: fer2013.hash_split(faces, targets["labels"].argmax(axis=1))
            for split, (faces, targets, _) in splits.items()
        },
        "votes_sha256": votes and hash_file(votes),
    }
    return json.loads(json.dumps(config))  # Tuples become lists, as they will when the state is read back.


def choose_precision():
    """Returns "mixed_bfloat16" where the hardware multiplies bfloat16, else "float32".

    Such hardware trains 1.5 times as fast with bfloat16; other hardware is far slower.
    """
    if keras.backend.backend() != "tensorflow":  # Other backends do not report what the hardware can do.
        return "float32"
    import tensorflow as tf

    with utils.quiet_stderr():  # TensorFlow prints an error where there is no GPU.
        gpus = tf.config.list_physical_devices("GPU")
    if gpus:  # NVIDIA GPUs have bfloat16 from compute capability 8.0 on. Colab's T4 has 7.5.
        details = tf.config.experimental.get_device_details(gpus[0])
        return "mixed_bfloat16" if details.get("compute_capability", (0, 0)) >= (8, 0) else "float32"
    cpuinfo = Path("/proc/cpuinfo")  # Linux only. Elsewhere, float32 is a safe choice.
    return "mixed_bfloat16" if cpuinfo.exists() and "avx512_bf16" in cpuinfo.read_text() else "float32"


def train(
    output_dir, data=fer2013.DEFAULT_DATA, votes=None, classes=5, epochs=120, batch_size=128, seed=0, limit=None,
    resume=False,
):  # fmt: skip
    """Trains a network, writes the model folder and returns the content of its `model.json`.

    The arguments are the options of `parse_args`, with paths for the files.

    Raises:
        FileNotFoundError, ValueError: the data cannot be used, or the folder or its state belongs to another run.
    """
    output_dir = output_dir.resolve()
    checkpoint.check_folders(output_dir)
    print(f"Reading {utils.printable(data)}.", flush=True)
    dataset = fer2013.read(data)
    splits = load_splits(dataset, votes, classes, limit)
    batch_size = min(batch_size, len(splits["train"][0]))
    options = {"classes": classes, "epochs": epochs, "batch_size": batch_size, "seed": seed, "limit": limit}
    state = checkpoint.Checkpoint(output_dir, make_config(data, votes, splits, options), list_crop_sizes(epochs))
    with checkpoint.locked(output_dir):
        if not resume:  # --resume completes it too.
            checkpoint.complete_replacement(output_dir)
        with state.interrupt_between_batches():
            weights = state.start(resume)
            for warning in dataset.warnings():  # After the checks, so that an error is the only line on stderr.
                print(f"Warning: {warning}", file=sys.stderr)
            fit(state, splits, weights)
            description = write_model(state, output_dir, splits)
    if state.interrupted:  # Ctrl-C after the last batch did not stop anything.
        raise KeyboardInterrupt(f"Training had already finished: see {utils.printable(output_dir)}.")
    return description


def export(network, path):
    """Writes a network as a LiteRT file with int8 weights, and float input and output."""
    import tensorflow as tf

    with utils.quiet_stderr():
        network.export(path, format="litert", optimizations=[tf.lite.Optimize.DEFAULT], verbose=False)


def write_model(state, output_dir, splits):
    """Exports and calibrates the best epoch, and moves the folder into place. Returns the content of model.json."""
    if keras.backend.backend() != "tensorflow":
        raise ValueError("The export needs TensorFlow. Repeat the command with KERAS_BACKEND=tensorflow and --resume.")
    keras.config.set_dtype_policy("float32")
    network = cnn.build_model(state.config["classes"], tuple(splits["val"][1]))
    checkpoint.set_weights(network.variables, state.best_weights)
    network = fit_face_output(network, splits["train"][0])
    folder = state.folder / "model"
    shutil.rmtree(folder, ignore_errors=True)  # Left by an interrupted export.
    folder.mkdir()
    pd.DataFrame(state.rows).to_csv(folder / "history.csv", index=False)
    network.save(folder / "model.keras")
    export(network, folder / "model.tflite")
    description = describe(network, state, splits["train"][1])
    description["tflite_sha256"] = hash_file(folder / "model.tflite")
    description = write_description(folder, description, splits)  # This file completes the folder.
    checkpoint.replace_model(output_dir)
    return description


def fit_face_output(network, faces):
    """Returns a network with the output `face`, fitted to Training faces; without it if they have no parts."""
    faces = faces[:PART_FACES]
    parts = find_parts(faces)
    if not len(parts):
        return network
    windows, is_face = np.concatenate([faces, parts]), np.repeat([1, 0, 1, 0], [len(faces), len(parts)] * 2)
    augmented = cnn.Augmentation()(windows.astype(np.float32), training=True)
    extract = keras.Model(network.input, cnn.shared_features(network))
    features = extract.predict(np.concatenate([windows, augmented]), batch_size=256, verbose=0)
    regression = LogisticRegression(C=FACE_REGULARIZATION, class_weight="balanced", max_iter=3000)
    regression.fit(features, is_face)
    return cnn.add_face_output(network, regression.coef_.T, regression.intercept_)


def find_parts(faces):
    """Returns the parts of faces that the frontal cascade mistakes for a face, uint8 (N, 48, 48, 1)."""
    cascade, parts = utils.load_cascade(utils.CASCADES["frontal"]), [faces[:0]]
    smallest, largest = ((side, side) for side in PART_SIZES)
    for face in faces:
        enlarged = cv2.resize(face, (144, 144), interpolation=cv2.INTER_CUBIC)
        image = cv2.copyMakeBorder(enlarged, 36, 36, 36, 36, cv2.BORDER_REFLECT)
        boxes = cascade.detectMultiScale(cv2.LUT(image, utils.TONE), 1.1, 1, minSize=smallest, maxSize=largest)
        parts.append(utils.crop_faces(image, sorted(map(tuple, boxes))))  # The cascade's threads vary in order.
    return np.concatenate(parts)


def describe(network, state, targets):
    """Returns the content of `model.json`, except for values that depend on the exported file."""
    config, ids = state.config, utils.CLASS_SETS[state.config["classes"]]
    classes = [utils.EMOTIONS[i] for i in ids]
    counts = np.bincount(targets["labels"].argmax(axis=1), minlength=len(classes)).tolist()
    return {
        "classes": classes,
        "fer2013_ids": ids,
        "image_size": utils.IMAGE_SIZE,
        "heads": list(targets),
        "parameters": network.count_params(),
        "macs": cnn.count_macs(network),
        "layers": cnn.describe_layers(network),
        "training": {
            **config,
            "rows_per_class": dict(zip(classes, counts, strict=True)),
            "date": datetime.date.today().isoformat(),
            "seconds": round(sum(row["seconds"] for row in state.rows)),
            "best_epoch": state.best_row()["epoch"],
        },
    }


def calibrate(folder, data_path, votes_path=None):
    """Fits temperatures and bias of a model folder again, writes its `model.json` and returns the content."""
    description = json.loads((Path(folder) / "model.json").read_text(encoding="utf-8"))
    config = description["training"]
    splits = load_splits(fer2013.read(data_path), votes_path, config["classes"], config["limit"])
    return write_description(Path(folder), description, splits)


def write_description(folder, description, splits):
    """Fits the read-out of the exported network, writes `model.json` and returns the content."""
    model = utils.EmotionModel(utils.load_network((folder / "model.tflite").read_bytes()), description)
    read_out, record = fit_read_out(model, splits)
    description |= read_out
    description["training"] |= record
    with cli.replaced(folder / "model.json") as path:
        path.write_text(json.dumps(description, indent=2), encoding="utf-8")
    return description


def fit_read_out(model, splits):
    """Fits on PublicTest how the outputs of an exported network become probabilities.

    Args:
        model: `utils.EmotionModel`.
        splits: from `load_splits`; the training votes give the bias.

    Returns:
        read_out: dict of `temperatures` (dict of head to float) and `bias` (list of C floats), as in `model.json`.
        record: dict of `tau` and `val_accuracy` (dict of head to accuracy without the bias), for `training` there.
    """
    (_, train_targets, train_weights), (faces, targets, weights) = splits["train"], splits["val"]
    temperatures, accuracies = dict.fromkeys(model.heads, 1.0), {}
    tau, bias = 0.0, np.zeros(len(model.classes))
    for head, logits in model.logits(faces).items():
        rows = weights[head] > 0
        if not rows.any():  # With --limit, no face may have a consensus.
            continue
        logits, labels = logits[rows], targets[head][rows].argmax(axis=1)
        accuracies[head] = float(np.mean(logits.argmax(axis=1) == labels))
        if head == "votes":
            tau, bias = fit_bias(logits, labels, train_weights[head] @ train_targets[head])
        temperatures[head] = fit_temperature(logits, labels, bias)
    return {"temperatures": temperatures, "bias": bias.tolist()}, {"tau": tau, "val_accuracy": accuracies}


def fit_bias(logits, labels, counts):
    """Returns tau and the bias, float (C,), that raise the recall of rare classes (Menon et al., 2021).

    Each tau is measured with its own temperature, so that the recall is the demo's.

    Args:
        logits: float (N, C), of the votes head for faces with a consensus.
        labels: int (N,), the consensus.
        counts: float (C,), number of training votes for each class, in any unit.
    """
    shares = np.maximum(counts / max(counts.sum(), 1), MIN_SHARE)
    biases = [-tau * np.log(shares) for tau in TAUS]
    temperatures = [fit_temperature(logits, labels, bias) for bias in biases]
    scores = [logits / temperature + bias for temperature, bias in zip(temperatures, biases, strict=True)]
    recalls = np.array([utils.mean_recall(each, labels) for each in scores])
    best = int(np.argmax(recalls >= recalls.max() - RECALL_MARGIN))
    return TAUS[best], biases[best]


def fit_temperature(logits, labels, bias=0.0):
    """Returns the temperature of softmax(logits / temperature + bias) with the lowest log loss (Guo et al., 2017).

    It is 1 if it does not lower the calibration error.

    Args:
        logits: float (N, C).
        labels: int (N,).
        bias: float (C,), or 0.
    """
    temperatures, rows = np.geomspace(0.2, 5, 500), np.arange(len(labels))
    losses = [-np.log(utils.softmax(logits / t + bias)[rows, labels] + 1e-12).mean() for t in temperatures]
    best = float(temperatures[np.argmin(losses)])
    before, after = (utils.expected_calibration_error(utils.softmax(logits / t + bias), labels) for t in (1, best))
    return best if after < before else 1.0


def relative_path(path):
    """Returns a path, relative to the repository if it lies there, because model.json is published."""
    path = path.resolve()
    return path.relative_to(utils.ROOT).as_posix() if path.is_relative_to(utils.ROOT) else str(path)


def hash_file(path):
    """Returns the SHA-256 of a file in hexadecimal digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def parse_args(argv=None):
    parser = cli.Parser(__doc__)
    path, count = cli.path, cli.whole_number(1, 1_000_000)
    parser.add_argument("--data", type=path, default=fer2013.DEFAULT_DATA, help="data set (default: data/fer2013.csv)")
    parser.add_argument("--votes", type=path, help="fer2013new.csv of FER+; adds a head for the votes (default: none)")
    parser.add_argument("--classes", type=int, choices=utils.CLASS_SETS, default=5, help="emotions (default: 5)")
    parser.add_argument("--output-dir", type=path, help="model folder (default: models/my-emotions-<classes>)")
    # 1.7 hours on two cores with bfloat16 instructions, 2.1 with AVX2 only.
    parser.add_argument("--epochs", type=count, default=120, help="number of epochs (default: 120)")
    parser.add_argument("--batch-size", type=count, default=128, help="faces per step (default: 128)")
    parser.add_argument("--seed", type=cli.whole_number(0, 2**32 - 1), default=0, help="random seed (default: 0)")
    parser.add_argument("--limit", type=count, help="use only the first LIMIT faces of each split")
    parser.add_argument("--resume", action="store_true", help="continue a run that was stopped or killed")
    args = parser.parse_args(argv)
    args.output_dir = args.output_dir or utils.ROOT / "models" / f"my-emotions-{args.classes}"
    return args


def run(args):
    """Trains a network, and prints the result and the next command."""
    training = train(**vars(args))["training"]
    accuracies = ", ".join(f"{head} {accuracy:.4f}" for head, accuracy in training["val_accuracy"].items())
    words = ["python", "evaluate.py", "--data", args.data, "--model", args.output_dir, "--split", "val"]
    words += ["--votes", args.votes] if args.votes else []
    command = " ".join(f'"{word}"' if " " in str(word) else str(word) for word in words)
    print(f"Validation accuracy (PublicTest, epoch {training['best_epoch']}): {accuracies}. See {args.output_dir}.")
    print(f"Next: {command}")


def main(argv=None):
    args = parse_args(argv)
    return cli.run_script("train.py", lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
