"""UNSIR on small models: it forgets, keeps the rest, touches nothing it must not, and refuses what cannot work."""

from __future__ import annotations

import csv
import json
import tracemalloc
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn import datasets
from tensorflow.core.util import event_pb2

import mpru_tf
from mpru_tf import UnsirConfig, unsir
from mpru_tf.errors import DataError, ForgetListError, ModelError, UnsupportedModelError
from mpru_tf.saved_model.session import LoadedModel
from mpru_tf.unlearning.noise import Range, learn_noise
from mpru_tf.unlearning.publishing import publish_unlearned
from mpru_tf.unlearning.record import RECORD, read_record
from mpru_tf.unlearning.scores import bare_scores, count_classes
from mpru_tf.unlearning.training import Mixed

# The paper's settings are for networks of millions of weights; these small ones need fewer and smaller steps.
SMALL = UnsirConfig(
    noise_batch=32, noise_batches=4, batch_size=64, impair_learning_rate=0.01, repair_learning_rate=0.005
)


@pytest.fixture(scope="module")
def digits() -> tuple[Any, Any, Any, Any]:
    """Pixels 0 to 16 as a model gets them that was never told to normalise: x, y to train, x, y to test."""
    found = datasets.load_digits()
    x, y = found.images[..., None].astype("float32"), found.target
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order], y[order]
    return x[:1300], y[:1300], x[1300:], y[1300:]


def build(logits: bool = False, separate_softmax: bool = False, policy: str | None = None) -> Any:
    keras.utils.set_random_seed(0)
    last = None if logits or separate_softmax else "softmax"
    layers = [
        keras.layers.Rescaling(1 / 16),
        keras.layers.Conv2D(12, 3, strides=2, padding="same", use_bias=False, dtype=policy),
        keras.layers.BatchNormalization(dtype=policy),
        keras.layers.ReLU(),
        keras.layers.Flatten(),
        keras.layers.Dense(32, activation="relu", dtype=policy),
        keras.layers.Dense(10, activation=last, dtype="float32" if policy is None else policy),
    ]
    if separate_softmax:
        layers.append(keras.layers.Softmax())
    return keras.Sequential([keras.Input((8, 8, 1)), *layers])


@pytest.fixture(scope="module")
def trained(digits: Any) -> dict[str, Any]:
    """The same weights behind each form of answer."""
    model = build()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(), metrics=["accuracy"])
    model.fit(digits[0], digits[1], epochs=12, batch_size=64, verbose=0)
    forms = {"softmax": model, "logits": build(logits=True), "layer": build(separate_softmax=True)}
    for form in forms.values():
        form.set_weights(model.get_weights())
    return forms


def retained(digits: Any, forgotten: list[int]) -> tuple[Any, Any]:
    keep = ~np.isin(digits[1], forgotten)
    return digits[0][keep], digits[1][keep]


def weights(model: Any) -> list[Any]:
    return [np.copy(weight) for weight in model.get_weights()]


def assert_same(ours: list[Any], theirs: list[Any]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def ways(trained: Any, digits: Any) -> dict[str, Any]:
    """Class 3 unlearned in each form; what they were before."""
    before = {name: weights(model) for name, model in trained.items()}
    done = {
        name: unsir(model, [3], retained(digits, [3]), SMALL, validation=digits[2:]) for name, model in trained.items()
    }
    for name, model in trained.items():
        assert_same(weights(model), before[name])  # a copy was worked on
    return done


def assert_forgets_and_keeps(result: Any) -> None:
    assert result.before.forgotten > 0.85
    assert result.after.forgotten <= 0.05
    assert result.after.retained > result.before.retained - 0.05


@pytest.mark.parametrize("form", ["softmax", "logits", "layer"])
def test_forgets_and_keeps(ways: Any, digits: Any, form: str) -> None:
    result = ways[form]
    assert_forgets_and_keeps(result)
    p = np.asarray(result.model(digits[2]))
    # It goes on answering as it did: probabilities if probabilities, else logits.
    assert np.allclose(p.sum(-1), 1, atol=1e-4) == (form != "logits")
    right = (p.argmax(-1) == digits[3])[digits[3] != 3]
    assert result.after.retained == pytest.approx(float(right.mean()))


def test_several_classes_at_once(trained: Any, digits: Any) -> None:
    result = unsir(trained["softmax"], "2,0", retained(digits, [0, 2]), SMALL, validation=digits[2:])
    assert result.forgotten == (0, 2)
    assert_forgets_and_keeps(result)


def test_forms_of_one_model_unlearn_alike(ways: Any) -> None:
    """A softmax, wherever it stands, is looked through: no gradient is lost in it."""
    losses = {name: [row.loss for row in way.history] for name, way in ways.items()}
    np.testing.assert_allclose(losses["softmax"], losses["logits"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(losses["layer"], losses["logits"], rtol=1e-3, atol=1e-4)


def test_hidden_softmax_is_seen_by_what_it_answers(trained: Any, digits: Any) -> None:
    inner = trained["softmax"]
    x = keras.Input((8, 8, 1))
    outer = keras.Model(x, inner(x))  # its last layer is a model
    assert_forgets_and_keeps(unsir(outer, 3, retained(digits, [3]), SMALL, validation=digits[2:]))


def test_softmax_used_twice_is_removed_at_the_output(digits: Any) -> None:
    softmax = keras.layers.Softmax()
    x = keras.Input((64,))
    model = keras.Model(x, softmax(keras.layers.Dense(10)(softmax(x))))
    with bare_scores(model, True) as scores:
        x = digits[0][:5].reshape(5, -1)
        found = scores(x)
    np.testing.assert_allclose(keras.activations.softmax(found), model(x), atol=1e-6)
    assert np.asarray(found).min() < 0


@pytest.mark.parametrize("nested", [False, True])
def test_loss_of_the_callers_own_is_not_copied(trained: Any, digits: Any, nested: bool) -> None:
    def own(y: Any, p: Any) -> Any:
        return keras.losses.sparse_categorical_crossentropy(y, p)

    inner = build()
    inner.set_weights(trained["softmax"].get_weights())
    inner.compile("sgd", own)
    x = keras.Input((8, 8, 1))
    model = keras.Model(x, inner(x)) if nested else inner
    assert_forgets_and_keeps(unsir(model, 3, retained(digits, [3]), SMALL, validation=digits[2:]))
    assert inner.compiled
    inner.fit(digits[0][:64], digits[1][:64], verbose=0)


def test_vectors(digits: Any) -> None:
    """Softmax regression on 64 features."""
    x, y, x_test, y_test = digits
    x, x_test = x.reshape(len(x), -1), x_test.reshape(len(x_test), -1)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10, activation="softmax")])
    model.compile(keras.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
    model.fit(x, y, epochs=15, verbose=0)
    keep = y != 4
    result = unsir(model, 4, (x[keep], y[keep]), SMALL, validation=(x_test, y_test))
    assert_forgets_and_keeps(result)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_low_precision(trained: Any, digits: Any, policy: str) -> None:
    model = build(policy=policy)
    model.set_weights(trained["softmax"].get_weights())
    result = unsir(model, 3, retained(digits, [3]), SMALL, validation=digits[2:])
    assert result.after.forgotten is not None
    assert result.after.forgotten <= 0.1
    assert result.after.retained > 0.85


@pytest.mark.parametrize("policy", ["float16", "bfloat16"])
def test_refuses_weights_that_adam_cannot_train(digits: Any, policy: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"of type {policy}"):
        unsir(build(policy=policy), 3, retained(digits, [3]), SMALL)


def test_in_place_keeps_what_the_caller_compiled(trained: Any, digits: Any) -> None:
    model = build()
    model.set_weights(trained["softmax"].get_weights())
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "sparse_categorical_crossentropy")
    model.fit(digits[0][:128], digits[1][:128], verbose=0)
    optimizer, state = model.optimizer, [np.copy(variable) for variable in model.optimizer.variables]
    flags, momentum = [layer.trainable for layer in model.layers], model.layers[2].momentum
    result = unsir(model, 3, retained(digits, [3]), SMALL, in_place=True)
    assert result.model is model
    assert model.optimizer is optimizer
    assert_same([np.asarray(variable) for variable in model.optimizer.variables], state)
    assert [layer.trainable for layer in model.layers] == flags
    assert model.layers[2].momentum == momentum == 0.99
    assert model.layers[-1].activation is keras.activations.softmax
    assert np.allclose(model.predict(digits[2], verbose=0).sum(-1), 1, atol=1e-5)
    model.fit(digits[0][:128], digits[1][:128], verbose=0)


def test_seed_decides(trained: Any, digits: Any) -> None:
    def run(seed: int) -> list[Any]:
        config = UnsirConfig(**{**SMALL.to_dict(), "seed": seed, "retained_per_class": 50})
        keras.utils.set_random_seed(seed + 17)  # and nothing else does
        return weights(unsir(trained["logits"], 3, retained(digits, [3]), config).model)

    first, again, other = run(1), run(1), run(2)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    assert any(not np.allclose(a, b, atol=1e-3) for a, b in zip(first, other, strict=True))


def test_seed_decides_what_is_dropped(digits: Any) -> None:
    def run(elsewhere: int) -> list[Any]:
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Flatten(), keras.layers.Dropout(0.5), keras.layers.Dense(10)]
        model = keras.Sequential([keras.Input((8, 8, 1)), *layers])
        # A loaded model is seeded by chance.
        model.layers[1].seed_generator.state.assign([elsewhere, 3])
        config = UnsirConfig(**{**SMALL.to_dict(), "seed": 4, "retained_per_class": 20})
        unsir(model, 3, retained(digits, [3]), config, in_place=True)
        assert list(np.asarray(model.layers[1].seed_generator.state)) == [elsewhere, 3]
        return weights(model)

    assert_same(run(1), run(2))


def test_frozen_statistics_stay(trained: Any, digits: Any) -> None:
    config = UnsirConfig(**{**SMALL.to_dict(), "batch_norm": "frozen"})
    result = unsir(trained["logits"], 3, retained(digits, [3]), config)
    before, after = trained["logits"].layers[2], result.model.layers[2]
    np.testing.assert_array_equal(before.moving_mean, after.moving_mean)
    assert not np.allclose(before.gamma, after.gamma)


def test_noise_maximises_the_error_in_the_range_of_the_inputs(trained: Any, digits: Any) -> None:
    x = retained(digits, [3])[0]
    before = weights(trained["softmax"])
    losses: dict[int, list[float]] = {3: [], 5: []}
    with bare_scores(trained["softmax"], True) as scores:
        noise = learn_noise(
            scores, (8, 8, 1), (3, 5), SMALL, Range.of(x), on_step=lambda c, step, loss: losses[c].append(loss)
        )
    assert noise.shape == (2, 32, 8, 8, 1)
    assert all(each[-1] < each[0] and len(each) == 40 for each in losses.values())
    for label, batch in zip((3, 5), noise, strict=True):
        assert np.asarray(trained["softmax"](batch))[:, label].max() < 0.01
    # Near the middle of the pixels' range, not near zero.
    assert abs(noise.mean() - x.mean()) < x.std()
    assert_same(weights(trained["softmax"]), before)


def test_noise_of_normalised_inputs_is_that_of_the_paper() -> None:
    """Mean 0 and deviation 1: what is learned from N(0, 1) is not moved or stretched."""
    x = np.random.default_rng(0).standard_normal((4000, 6)).astype("float32")
    found = Range.of(x)
    np.testing.assert_allclose(found.mean, 0, atol=0.06)
    np.testing.assert_allclose(found.deviation, 1, atol=0.04)


def test_range_of_many_examples() -> None:
    """In float64, without a copy of them in it."""
    x = np.random.default_rng(0).standard_normal((5000, 16, 16, 3), dtype=np.float32) * (1, 2, 3) + (0, 100, -7)
    x = x.astype(np.float32)
    tracemalloc.start()
    found = Range.of(x)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < x.nbytes / 2
    np.testing.assert_allclose(found.mean, x.mean((0, 1, 2), np.float64), rtol=1e-6)
    np.testing.assert_allclose(found.deviation, x.std((0, 1, 2), np.float64), rtol=1e-6)


def test_noise_is_seen_again_without_a_copy() -> None:
    random = np.random.default_rng(0)
    noise, x = (random.standard_normal((size, 2, 3), dtype=np.float32) for size in (4, 6))
    mixed = Mixed(noise, 3, x)
    order = random.permutation(len(mixed))
    np.testing.assert_array_equal(mixed[order], np.concatenate([noise, noise, noise, x])[order])
    many = Mixed(noise, 10**12, x)
    np.testing.assert_array_equal(many[np.array([len(many) - 1, 4 * 10**12 - 1])], [x[-1], noise[-1]])


def test_history_is_written(trained: Any, digits: Any, tmp_path: Path) -> None:
    result = unsir(
        trained["logits"],
        [0, 2],
        retained(digits, [0, 2]),
        SMALL,
        history_csv=tmp_path / "h" / "history.csv",
        tensorboard=tmp_path / "events",
        progress=True,
    )
    assert result.steps["noise"] == 2 * 5 * 8
    assert [row.phase for row in result.history] == [name for name, steps in result.steps.items() for _ in range(steps)]
    with open(tmp_path / "h" / "history.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == [row.loss for row in result.history]
    assert {row["label"] for row in rows if row["phase"] == "noise"} == {"0", "2"}
    (events,) = (tmp_path / "events").glob("events.out.tfevents.*")
    records = [event_pb2.Event.FromString(record.numpy()) for record in tf.data.TFRecordDataset(str(events))]
    losses = [(value.tag, value.simple_value) for record in records for value in record.summary.value]
    assert len(losses) == len(rows)
    assert losses[0] == ("noise/class_0/loss", pytest.approx(result.history[0].loss))
    json.dumps(result.to_dict())


def test_as_many_steps_for_many_classes(trained: Any, ways: Any, digits: Any) -> None:
    """The paper's claim, for impair and repair: fewer retained examples make up for more noise."""
    one = ways["logits"]
    four = unsir(trained["logits"], [3, 5, 6, 8], retained(digits, [3, 5, 6, 8]), SMALL)
    total = [sum(each.steps[phase] for phase in ("impair", "repair")) for each in (one, four)]
    assert total[1] <= total[0] * 1.1


def test_floor_ends_impair_early(trained: Any, ways: Any, digits: Any) -> None:
    wild = {**SMALL.to_dict(), "impair_learning_rate": 0.2, "repair_epochs": 10}
    config = UnsirConfig(**{**wild, "retained_floor": 0.8, "look_every": 2})
    result = unsir(trained["logits"], 3, retained(digits, [3]), config)
    assert "impair" in result.ended_early
    assert result.steps["impair"] < ways["logits"].steps["impair"]
    assert result.after.retained >= 0.8
    assert any(row.retained_accuracy is not None for row in result.history)


def test_floor_leaves_repair_alone(trained: Any, ways: Any, digits: Any) -> None:
    """Its first steps bring the forgotten class back."""
    config = UnsirConfig(**{**SMALL.to_dict(), "retained_floor": 0.3, "look_every": 1})
    result = unsir(trained["logits"], 3, retained(digits, [3]), config, validation=digits[2:])
    assert result.ended_early == ()
    assert result.steps == ways["logits"].steps
    assert_forgets_and_keeps(result)


def test_refuses_to_end_below_the_floor(trained: Any, digits: Any) -> None:
    config = UnsirConfig(**{**SMALL.to_dict(), "impair_learning_rate": 1.0, "repair_epochs": 0, "retained_floor": 0.9})
    model = build(logits=True)
    model.set_weights(trained["logits"].get_weights())
    before = weights(model)
    with pytest.raises(ModelError, match="after repair"):
        unsir(model, 3, retained(digits, [3]), config, in_place=True)
    assert_same(weights(model), before)


# ------------------------------------------------------------------------------------------------------- refusals
def test_refuses_retained_data_with_a_forgotten_class(trained: Any, digits: Any) -> None:
    with pytest.raises(DataError, match=r"\d+ of class 3"):
        unsir(trained["softmax"], 3, digits[:2], SMALL)


def test_refuses_a_retained_class_without_examples(trained: Any, digits: Any) -> None:
    with pytest.raises(DataError, match="no example of classes 5, 7.* forgot earlier go into the list"):
        unsir(trained["softmax"], 3, retained(digits, [3, 5, 7]), SMALL)


@pytest.mark.parametrize("classes", [[], [10], [3, 3], list(range(10)), "cat"])
def test_refuses_forget_lists(trained: Any, digits: Any, classes: Any) -> None:
    with pytest.raises(ForgetListError):
        unsir(trained["softmax"], classes, retained(digits, [3]), SMALL)


def test_classes_by_label(trained: Any, digits: Any) -> None:
    names = [f"digit {c}" for c in range(10)]
    config = UnsirConfig(noise_batch=2, noise_rounds=1, noise_steps=1, noise_batches=1, retained_per_class=1)
    assert unsir(trained["softmax"], "digit 3", retained(digits, [3]), config, labels=names).forgotten == (3,)


def test_refuses_validation_of_forgotten_classes_alone(trained: Any, digits: Any) -> None:
    x, y = digits[2][digits[3] == 3], digits[3][digits[3] == 3]
    with pytest.raises(DataError, match="all of forgotten"):
        unsir(trained["softmax"], 3, retained(digits, [3]), SMALL, validation=(x, y))


def test_refuses_a_frozen_model(trained: Any, digits: Any) -> None:
    model = build()
    model.trainable = False
    with pytest.raises(ModelError, match="frozen"):
        unsir(model, 3, retained(digits, [3]), SMALL)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_refuses_when_the_loss_is_not_finite(trained: Any, digits: Any) -> None:
    model = build(logits=True)
    model.set_weights(trained["logits"].get_weights())
    before = weights(model)
    config = UnsirConfig(**{**SMALL.to_dict(), "impair_learning_rate": 1e38})
    with pytest.raises(ModelError, match="astray"):
        unsir(model, 3, retained(digits, [3]), config, in_place=True)
    assert_same(weights(model), before)


@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_refuses_answers_that_are_not_finite(trained: Any, digits: Any) -> None:
    """No loss tells it: it is that of before the step."""
    model = build(logits=True)
    model.set_weights(trained["logits"].get_weights())
    before = weights(model)
    one_step = {"noise_batches": 1, "batch_size": 4096, "impair_learning_rate": 3e38, "repair_epochs": 0}
    with pytest.raises(ModelError, match="unlearned model answers"):
        unsir(model, 3, retained(digits, [3]), UnsirConfig(**{**SMALL.to_dict(), **one_step}), in_place=True)
    assert_same(weights(model), before)


def test_refuses_a_broken_model(trained: Any, digits: Any) -> None:
    model = build(logits=True)
    model.set_weights([weight * np.nan for weight in trained["logits"].get_weights()])
    with pytest.raises(ModelError, match="not finite"):
        unsir(model, 3, retained(digits, [3]), SMALL)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda x, y: (x[:-1], y), "do not belong together"),
        (lambda x, y: (x[:0], y[:0]), "do not belong together"),
        (lambda x, y: (x[0, 0, 0, 0], y[0]), "do not belong together"),
        (lambda x, y: (x[..., 0], y), "do not fit the model"),
        (lambda x, y: (x[:, :4], y), "do not fit the model"),
        (lambda x, y: (x, y + 1), "no classes of the model"),
        (lambda x, y: (x, y.astype(float)), "no classes of the model"),
        (lambda x, y: (np.where(x > 15, np.nan, x), y), "NaN"),
        (lambda x, y: (x.astype(str), y), "no numbers"),
        (lambda x, y: (x * 0, y), "all the same"),
    ],
)
def test_refuses_data(trained: Any, digits: Any, change: Any, match: str) -> None:
    with pytest.raises(DataError, match=match):
        unsir(trained["softmax"], 3, change(*retained(digits, [3])), SMALL)


@pytest.mark.parametrize(
    "settings",
    [
        {"impair_learning_rate": 0},
        {"repair_learning_rate": float("nan")},
        {"noise_batches": 0},
        {"noise_penalty": -1},
        {"batch_norm": "off"},
        {"retained_floor": 2},
        {"repair_epochs": -1},
        {"seed": -1},
    ],
)
def test_refuses_settings(settings: Any) -> None:
    with pytest.raises(DataError, match=next(iter(settings))):
        UnsirConfig(**settings)


def test_refuses_models_that_are_no_classifiers(digits: Any) -> None:
    x = keras.Input((8, 8, 1))
    flat = keras.layers.Flatten()(x)
    two = keras.Model(x, [keras.layers.Dense(10)(flat), keras.layers.Dense(2)(flat)])
    one = keras.Model(x, keras.layers.Dense(1)(flat))
    tokens = keras.Sequential(
        [keras.Input((5,), dtype="int32"), keras.layers.Embedding(9, 4), keras.layers.Flatten(), keras.layers.Dense(10)]
    )
    named = keras.Model(x, {"scores": keras.layers.Dense(10)(flat)})
    for model, match in (
        (two, "2 outputs"),
        (named, r"dict of outputs \['scores'\]"),
        (one, "no class scores"),
        (tokens, "real numbers"),
    ):
        with pytest.raises(UnsupportedModelError, match=match):
            unsir(model, 0, retained(digits, [0]), SMALL)


def test_refuses_models_that_judge_each_class_on_its_own(digits: Any) -> None:
    x = keras.Input((8, 8, 1))
    flat = keras.layers.Flatten()(x)
    head = keras.Model(x, keras.layers.Dense(10, activation="sigmoid")(flat))
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(10, 1, activation="sigmoid")(x))
    ways = (
        head,
        keras.Model(x, head(x)),
        keras.Sequential(
            [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10), keras.layers.Activation("sigmoid")]
        ),
        keras.Model(x, keras.ops.sigmoid(keras.layers.Dense(10)(flat))),
        keras.Model(x, pooled),
    )
    for model in ways:
        with pytest.raises(UnsupportedModelError, match="multi-label or binary"):
            unsir(model, 3, retained(digits, [3]), SMALL)


def test_sigmoids_elsewhere_are_none_of_its_business() -> None:
    x = keras.Input((6,))
    scores = keras.layers.Dense(4)(keras.layers.Dense(5, activation="sigmoid")(x))
    squashed = keras.layers.Activation("sigmoid")(scores)
    shares = keras.layers.UnitNormalization(1)(squashed)
    for answers in (scores, keras.layers.Softmax()(squashed), shares):
        assert count_classes(keras.Model(x, answers)) == 4


def test_the_defaults_are_the_papers() -> None:
    config = UnsirConfig()
    assert (config.noise_batch, config.noise_learning_rate, config.noise_rounds, config.noise_steps) == (256, 0.1, 5, 8)
    assert (config.noise_penalty, config.noise_batches, config.retained_per_class) == (0.1, 20, 1000)
    assert (config.impair_learning_rate, config.repair_learning_rate) == (0.02, 0.01)
    assert (config.impair_epochs, config.repair_epochs) == (1, 1)


# ------------------------------------------------------------------------------------------------------ publishing
def test_published_without_a_filter_it_is_no_filtered_version(ways: Any, digits: Any, tmp_path: Path) -> None:
    published = publish_unlearned(ways["softmax"], tmp_path / "base", digits[2][:4], labels=list("abcdefghij"))
    assert (published.version, published.filtered) == (1, None)
    record = read_record(published.path)
    assert record is not None
    assert (record["method"], record["forgotten"]) == ("unsir", [3])
    assert record["after"]["forgotten"] == ways["softmax"].after.forgotten
    # The class still has a score, and nothing says otherwise.
    with LoadedModel(published.path) as loaded:
        (given,), (shown,) = (getattr(loaded.signatures["serving_default"], name) for name in ("inputs", "outputs"))
        answers = loaded.run("serving_default", {given: digits[2]})[shown]
    np.testing.assert_allclose(answers, np.asarray(ways["softmax"].model(digits[2])), atol=1e-5)
    assert answers[:, 3].max() > 0
    assert mpru_tf.inspect(published.path).forgotten == ()
    with pytest.raises(mpru_tf.ManifestError, match="nothing filters its answers"):
        mpru_tf.verify(published.path)


def test_published_with_a_filter(ways: Any, digits: Any, tmp_path: Path) -> None:
    base = tmp_path / "base"
    published = publish_unlearned(ways["softmax"], base, digits[2][:4], then_filter="tempered", source=__file__)
    assert published.filtered is not None
    assert (published.filtered.leak_gate, published.filtered.load_check["status"]) == ("passed", "passed")
    assert published.filtered.path == published.path == base / "1"
    assert mpru_tf.verify(published.path, full=True).passed
    with LoadedModel(published.path) as loaded:
        (given,), (shown,) = (getattr(loaded.signatures["serving_default"], name) for name in ("inputs", "outputs"))
        assert np.all(loaded.run("serving_default", {given: digits[2]})[shown][:, 3] == 0)
    # The record comes along, also when more is forgotten on top.
    further = mpru_tf.forget(base, 5)
    assert further.forgotten == (3, 5)
    record = read_record(further.path)
    assert record is not None
    assert record["forgotten"] == [3]
    assert record["source"]["path"] == __file__
    assert sorted(path.name for path in base.iterdir()) == ["1", "2"]


def test_labels_are_redacted_everywhere(ways: Any, digits: Any, tmp_path: Path) -> None:
    file = tmp_path / "all but Zebediah.keras"
    file.write_bytes(b"a model")
    names = [*(f"name {c}" for c in range(3)), "Zebediah", *(f"name {c}" for c in range(4, 10))]
    options = {"labels": names, "source": file, "then_filter": "renormalize", "redact_labels": True}
    published = publish_unlearned(ways["softmax"], tmp_path / "base", digits[2][:4], **options)
    for path in published.path.rglob("*"):
        assert not path.is_file() or b"Zebediah" not in path.read_bytes(), path


def test_no_class_comes_back_by_publishing(ways: Any, digits: Any, tmp_path: Path) -> None:
    base = tmp_path / "base"
    publish_unlearned(ways["softmax"], base, digits[2][:4], then_filter="renormalize")
    with pytest.raises(ForgetListError, match="without 3|no class to forget"):
        publish_unlearned(ways["softmax"], base, digits[2][:4])
    assert [path.name for path in base.iterdir()] == ["1"]


def test_refuses_filters_that_need_what_was_unlearned(ways: Any, digits: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="gram_schmidt"):
        publish_unlearned(ways["softmax"], tmp_path / "base", digits[2][:4], then_filter="gram_schmidt")
    with pytest.raises(DataError, match="no filter is named"):
        publish_unlearned(ways["softmax"], tmp_path / "base", digits[2][:4], redact_labels=True)
    assert not (tmp_path / "base").exists()


def test_record_notices_other_weights(ways: Any, digits: Any, tmp_path: Path) -> None:
    published = publish_unlearned(ways["softmax"], tmp_path / "base", digits[2][:4])
    assert read_record(tmp_path) is None
    index = published.path / "variables" / "variables.index"
    index.write_bytes(index.read_bytes() + b"x")
    with pytest.raises(mpru_tf.ManifestError, match="other weights"):
        read_record(published.path)
    (published.path / RECORD).write_text("{}", encoding="utf-8")
    with pytest.raises(mpru_tf.ManifestError, match="cannot be read"):
        read_record(published.path)
