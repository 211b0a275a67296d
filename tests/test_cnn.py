"""The network has the size it says, and each augmentation changes what its name says.

python -m pytest tests/test_cnn.py
"""

import keras
import numpy as np
import pytest
from keras import layers

import cnn

CHANGES = {
    "MAX_ROTATION": 0, "MAX_SCALE": 0, "MAX_SHIFT": 0, "ERASING_PROBABILITY": 0, "APPEARANCE_PROBABILITY": 0,
    "SHARPNESS": (0, 0), "GAMMA": (1, 1), "MAX_NOISE": 0,
}  # fmt: skip


@pytest.fixture
def unchanged(monkeypatch):
    """Switches every augmentation off but the horizontal flip."""
    for name, value in CHANGES.items():
        monkeypatch.setattr(cnn, name, value)


def random_faces(count):
    return np.random.default_rng(0).integers(0, 256, (count, 48, 48, 1)).astype(np.float32)


def augment(faces, size=48):
    augmentation = cnn.Augmentation()
    augmentation.size = size
    return np.array(augmentation(faces, training=True))


def test_network_size_is_within_its_budget():
    network = cnn.build_model(7)
    assert network.count_params() < 1_000_000
    assert 70e6 < cnn.count_macs(network) < 80e6


def test_face_output_is_added_beside_the_heads():
    network, faces = cnn.build_model(5), random_faces(3)
    extended = cnn.add_face_output(network, np.zeros((160, 1)), np.ones(1))
    outputs = extended(faces)
    assert np.array(outputs["face"]).tolist() == [[1.0]] * 3
    for head, logits in network(faces).items():
        assert np.array_equal(outputs[head], logits)


def test_network_returns_logits_of_each_head():
    network = cnn.build_model(5, ("labels", "votes"))
    outputs = network(random_faces(3))
    assert {head: tuple(logits.shape) for head, logits in outputs.items()} == {"labels": (3, 5), "votes": (3, 5)}
    assert list(cnn.build_model(5, ("labels",))(random_faces(1))) == ["labels"]


def test_network_sees_a_dim_face_as_it_sees_the_bright_one():
    network, faces = cnn.build_model(5), random_faces(3)
    logits, dim = (network(images)["labels"] for images in (faces, faces / 8 + 10))
    assert np.allclose(logits, dim, rtol=0.02, atol=0.02 * np.std(logits))


def test_blank_image_gives_finite_logits():
    assert np.isfinite(cnn.build_model(5)(np.full((1, 48, 48, 1), 255, np.float32))["votes"]).all()


def test_count_macs_by_hand():
    """Conv 3x3, 1 -> 2 on 8x8: 8*8*9*1*2 = 1152; conv 3x3, 2 -> 4 on 4x4: 4*4*9*2*4 = 1152; dense 4 -> 3: 12."""
    inputs = keras.Input((8, 8, 1))
    x = layers.MaxPooling2D()(layers.Conv2D(2, 3, padding="same")(inputs))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, padding="same")(x))
    assert cnn.count_macs(keras.Model(inputs, layers.Dense(3)(x))) == 1152 + 1152 + 12


def test_describe_layers_names_kinds_shapes_and_sources():
    inputs = keras.Input((8, 8, 1), name="faces")
    x = layers.Conv2D(2, 3, padding="same", name="conv")(inputs)
    x = layers.Add(name="sum")([inputs, x])
    described = cnn.describe_layers(keras.Model(inputs, layers.SpatialDropout2D(0.1, name="drop")(x)))
    assert described[1] == {
        "name": "conv", "kind": "Conv2D", "text": "Conv2D 3×3", "shape": [8, 8, 2], "sources": ["faces"],
    }  # fmt: skip
    assert described[2]["sources"] == ["faces", "conv"]
    assert described[3]["text"] == "SpatialDropout2D 10%"


def test_augmentation_flips_half_of_the_faces(unchanged):
    faces = random_faces(40)
    results = augment(faces)
    plain, flipped = (np.abs(results - images).max(axis=(1, 2, 3)) < 1e-2 for images in (faces, faces[:, :, ::-1]))
    assert (plain ^ flipped).all() and 8 < plain.sum() < 32


def test_crop_is_the_center_of_the_face_at_its_own_scale(unchanged):
    """48 - 40 = 8 pixels less: 4 on each side."""
    faces = random_faces(8)
    for result, face in zip(augment(faces, size=40), faces[:, 4:44, 4:44], strict=True):
        assert np.allclose(result, face, atol=1e-2) or np.allclose(result, face[:, ::-1], atol=1e-2)


def test_augmentation_does_nothing_in_inference():
    faces = random_faces(3)
    assert np.array_equal(cnn.Augmentation()(faces, training=False), faces)


def draw_disc():
    """Returns 200 copies of a bright disc in the center, and the coordinates of the pixels."""
    y, x = np.mgrid[:48, :48]
    disc = ((x - 23.5) ** 2 + (y - 23.5) ** 2 < 100)[..., np.newaxis] * 200.0
    return np.tile(disc, (200, 1, 1, 1)).astype(np.float32), x, y


def test_shift_moves_the_center_by_its_share_of_the_size(unchanged, monkeypatch):
    monkeypatch.setattr(cnn, "MAX_SHIFT", 0.1)
    disc, x, y = draw_disc()
    for axis in (x, y):
        centers = [(axis * face[..., 0]).sum() / face.sum() - 23.5 for face in augment(disc)]
        assert 4 < np.max(np.abs(centers)) <= 4.8 + 0.1  # 0.1 * 48 pixels.


def test_scale_changes_the_area_by_its_square(unchanged, monkeypatch):
    monkeypatch.setattr(cnn, "MAX_SCALE", 0.2)
    disc, _, _ = draw_disc()
    areas = augment(disc).sum(axis=(1, 2, 3)) / disc[0].sum()
    assert 0.6 < areas.min() < 0.75 and 1.3 < areas.max() < 1.5  # 0.8 and 1.2 squared: 0.64 and 1.44.


def test_rotation_turns_a_bar_by_up_to_its_degrees(unchanged, monkeypatch):
    monkeypatch.setattr(cnn, "MAX_ROTATION", 20)
    _, x, _ = draw_disc()
    bar = np.where(np.abs(x - 23.5) < 2, 200.0, 0)[np.newaxis, ..., np.newaxis].repeat(200, 0).astype(np.float32)
    # A bar through the center, seen 20 rows above it: 20 * tan(angle) to the side.
    angles = [
        np.rad2deg(np.arctan2((x[3] * face[3, :, 0]).sum() / face[3].sum() - 23.5, 20.5)) for face in augment(bar)
    ]
    assert 17 < np.max(angles) <= 20.5 and -20.5 <= np.min(angles) < -17


def test_erasing_fills_its_share_of_the_faces_with_noise(unchanged, monkeypatch):
    monkeypatch.setattr(cnn, "ERASING_PROBABILITY", 0.5)
    erased = (augment(np.zeros((200, 48, 48, 1), np.float32)) > 0).mean(axis=(1, 2, 3))
    low, high = cnn.ERASING_SIDE
    assert 0.35 < (erased > 0).mean() < 0.65 and low**2 / 2 < erased[erased > 0].min() and erased.max() < 1.2 * high**2


@pytest.fixture
def appearance(unchanged, monkeypatch):
    """Applies the appearance changes to every face; each test switches one on."""
    monkeypatch.setattr(cnn, "APPEARANCE_PROBABILITY", 1.0)
    return monkeypatch


def test_appearance_changes_its_share_of_the_faces(appearance):
    appearance.setattr(cnn, "MAX_NOISE", 6)
    appearance.setattr(cnn, "APPEARANCE_PROBABILITY", 0.5)
    changed = np.abs(augment(np.full((200, 48, 48, 1), 100, np.float32)) - 100).max(axis=(1, 2, 3)) > 0.01
    assert 0.35 < changed.mean() < 0.65


def test_gamma_darkens_and_brightens_gray_and_keeps_black_and_white(appearance):
    """255 * (128 / 255) ** 2 = 64.3 and 255 * (128 / 255) ** 0.5 = 180.7."""
    appearance.setattr(cnn, "GAMMA", (0.5, 2.0))
    face = np.zeros((200, 48, 48, 1), np.float32)
    face[:, 12:24], face[:, 24:] = 128, 255
    results = augment(face)
    assert 64.2 < results[:, 18].min() < 75 and 165 < results[:, 18].max() < 180.8
    assert np.abs(results[:, 0]).max() < 1e-3 and np.abs(results[:, 40] - 255).max() < 1e-3


def test_sharpness_blurs_and_sharpens_an_edge(appearance):
    """The binomial kernel takes 1/16 and 4/16 of the far side: 5/16 of the step at the edge."""
    appearance.setattr(cnn, "SHARPNESS", (-0.5, 1.0))
    edge = np.full((200, 48, 48, 1), 100, np.float32)
    edge[:, 24:] = 116
    below = augment(edge)[:, 23, 24, 0] - 100
    assert 4.5 < below.max() <= 5.01 and -2.51 <= below.min() < -2.2


def test_noise_has_up_to_its_standard_deviation(appearance):
    appearance.setattr(cnn, "MAX_NOISE", 6)
    deviations = augment(np.full((200, 48, 48, 1), 128, np.float32)).std(axis=(1, 2, 3))
    assert deviations.min() < 0.5 and 5.5 < deviations.max() < 6.5


def test_normalize_by_hand():
    """Half of the rows are 100 - 50, half 100 + 50: mean 100, variance 2500, to which 4 are added."""
    face = np.full((1, 48, 48, 1), 50, np.float32)
    face[:, 24:] = 150
    assert np.allclose(np.unique(cnn.normalize(face)), np.array([-50, 50]) / np.sqrt(2504))


def test_augmentation_is_fixed_by_seed_and_epoch(monkeypatch):
    monkeypatch.setattr(cnn, "STAGES", ((8, 1, 0),))
    model, faces, results = cnn.AugmentedModel(cnn.build_model(5)), random_faces(4), []
    for seed, epoch in ((3, 1), (3, 1), (4, 1), (3, 2)):
        model.seed_epoch(seed, epoch)
        results.append(np.array(model.augmentation(faces, training=True)))
    assert np.array_equal(results[0], results[1])
    assert not any(np.array_equal(results[0], result) for result in results[2:])
