"""One YAML file: what loads, what is overridden, and what each mistake is answered with."""

import os
from pathlib import Path

import numpy as np
import pytest

from raymtl.config import Experiment, check_space, dotted_names, is_known, load, parse
from raymtl.data.episodes import build_episodes, on_device
from raymtl.data.formats.cifar100 import Pictures
from raymtl.data.sources.cifar100_splits import CIFAR_FS
from raymtl.encoders import MLPSpec
from raymtl.learners import Reptile
from raymtl.step.meta_gradient import meta_gradient
from raymtl.types import UserError
from raymtl.weighting import StaticSpec
from tests.data.blood import write_voc
from tests.data.rooms import write_rooms
from tests.narrowing import checked, present

CONFIGS = sorted((Path(__file__).parent.parent.parent / "tune_configs").glob("*.yaml"))


def refused(tmp_path: Path, text: str) -> str:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    return message.removeprefix(str(path))


def cifar100_of_noise() -> Pictures:
    """All 60,000 pictures are a few, and the names of the classes are those of CIFAR-FS as far as it names them."""
    held = [*CIFAR_FS["val"], *CIFAR_FS["test"]]
    rows = np.arange(60_000) % 50
    members = {"train": rows[:50_000].reshape(100, 500), "test": rows[50_000:].reshape(100, 100)}
    pictures = np.random.default_rng(0).integers(256, size=(50, 3, 32, 32), dtype=np.uint8)
    return Pictures(
        pictures, members, np.arange(100) % 20, np.array(held + [f"kind {i}" for i in range(64)])
    )


def drawings() -> tuple[np.ndarray, np.ndarray]:
    """Omniglot's shapes, with noise in place of the characters."""
    noise = np.random.default_rng(0).integers(256, size=(1623, 20, 28, 28), dtype=np.uint8)
    return noise, np.arange(1623).astype(str)


# Real pictures have faults, which are told and left out: two of the blood cells' boxes have no area.
@pytest.mark.filterwarnings("ignore:.* are left out")
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_configuration_takes_a_step(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It loads and round-trips."""
    if ": $RAYMTL_DATA/" in path.read_text() and "RAYMTL_DATA" not in os.environ:
        pytest.skip("needs data in $RAYMTL_DATA")
    # Not everyone has drawings and digits, and their shapes will do.
    monkeypatch.setattr("raymtl.data.sources.omniglot.read_drawings", lambda root: drawings())
    monkeypatch.setattr(
        "raymtl.data.sources.cifar100.read_pictures", lambda root: cifar100_of_noise()
    )
    # Nor the rooms.
    monkeypatch.setattr(
        "raymtl.data.sources.nyuv2.root_of", lambda folder: write_rooms(tmp_path / "nyuv2", 1)
    )
    monkeypatch.setattr(
        "raymtl.data.sources.multimnist.read_digits",
        lambda root: (np.zeros((70_000, 28, 28), np.uint8), np.zeros(70_000, np.int64)),
    )
    monkeypatch.setenv("RAYMTL_DATA", os.environ.get("RAYMTL_DATA", str(tmp_path)))
    if os.environ["RAYMTL_DATA"] == str(tmp_path):
        write_voc(tmp_path)
    experiment = load(path)
    experiment.save(tmp_path / "saved.yaml")
    assert load(tmp_path / "saved.yaml") == experiment
    algorithm = experiment.build()
    built, _ = build_episodes(
        experiment.data, experiment.data.load(), seed=0, split="train", step=0, indices=range(2)
    )
    losses = meta_gradient(algorithm, algorithm.init_params(), on_device(built, "cpu")).losses
    # Where episodes have some of the tasks each, a few may have none of one.
    assert not losses.isinf().any() and losses.isfinite().any()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "learner:\n  name: maml\n  inner_lrr: 1",
            ":3: learner.inner_lrr: unknown key. Did you mean learner.inner_lr?",
        ),
        (
            "learner: {name: mamll}",
            ", got 'mamll'. Did you mean maml?",
        ),
        ("learner: {inner_lr: 0.1}", "learner.name: expected one of anil, boil, "),
        (
            "learner: {name: reptile, first_order: true}",
            "learner.name: reptile has no such key, only anil and boil and cavia and maml",
        ),
        ("learner: {name: maml, inner_lr: fast}", ":1: learner.inner_lr: expected a valid number"),
        (
            "learner: {name: maml, inner_lr: -1}",
            ":1: learner.inner_lr: expected greater than 0, got -1.",
        ),
        ("train:\n  steps: 10\n  lr: .nan", ":3: train.lr: expected a finite number"),
        ("traim: {steps: 10}", ":1: traim: unknown key. Did you mean train?"),
        ("train: {device: gpu}", ":1: train.device: expected 'auto', 'cpu' or 'cuda', got 'gpu'."),
        ("train: 3", ":1: train: "),
        ("- a\n- b", ": expected a mapping of keys, got list"),
        ("a: [1, 2", ": not valid YAML"),
        ("train:\n  steps: 1\n  steps: 2", ":3: train.steps: the key stands twice"),
        (
            "train: {meta_batch: 2, workers: 3}",
            ":1: train.meta_batch: expected an episode for each of train.workers: 3",
        ),
        (
            "train:\n  meta_batch: 8\n  min_workers: 3\n  workers: 2",
            ":3: train.min_workers: expected at most train.workers: 2",
        ),
        ("train: {min_workers: 0}", ":1: train.min_workers: expected greater than 0, got 0."),
        (
            "train: {meta_batch: 3, workers: 4, min_workers: 2}",
            ":1: train.meta_batch: expected an episode for each of train.workers: 4",
        ),
        (
            "tune: {workers_per_trial: [1, 2]}",
            ":1: tune.workers_per_trial: expected a valid integer, got [1, 2].",
        ),
        ("learner: {name: protonet}", "learner.name: protonet cannot learn data.tasks"),
        (
            "learner: {name: reptile}\nweighting: {name: pcgrad}",
            ":2: weighting.name: pcgrad weighs gradients",
        ),
        (
            "data: {name: digits, tasks: [sum]}\nweighting: {name: pcgrad}",
            ":2: weighting.name: pcgrad needs the gradients of several",
        ),
        (
            "weighting: {name: static, weights: {lift: 1}}",
            "weighting.weights.lift: expected one of the tasks ['left', 'right', 'sum'], got 'lift'. Did you mean left?",
        ),
        ("encoder: {name: conv, channels: [8, 8, 8, 8, 8, 8]}", "encoder.channels: 6 stages halve"),
        (
            "sharing: {name: mmoe, num_experts: 0}",
            ":1: sharing.num_experts: expected greater than 0, got 0.",
        ),
        (
            "sharing: {name: ple, num_levels: 9}",
            "sharing.num_levels: expected at most the 3 stages of the encoder, got 9.",
        ),
        (
            "sharing: {name: relation}",
            "sharing.name: relation compares the weights of heads and needs the same shapes",
        ),
        (
            "sharing: {name: branching, tree: {lift: {follows: left, stages: 1}}}",
            ":1: sharing.tree.lift: expected one of the tasks ['left', 'right', 'sum'], got 'lift'. Did you mean left?",
        ),
        (
            "sharing: {name: branching, tree: {right: {follows: sum, stages: 1}}}",
            "sharing.tree.right.follows: expected a task before 'right', one of ['left'], got 'sum'.",
        ),
        (
            "sharing: {name: hierarchical, levels: {sum: 4}}",
            "sharing.levels.sum: expected a stage of the encoder, 1 to 3",
        ),
        (
            "weighting: {name: famo, lower_bounds: {lift: 1}}",
            "weighting.lower_bounds.lift: expected one of the tasks",
        ),
        (
            "weighting: {name: mgda}\nmode: {name: hierarchical}",
            ":1: weighting.name: mgda needs the gradients of several tasks, and mode.name: hierarchical lets one task count",
        ),
        (
            "search: {sharing.tree.sum.follow: {choice: [left, right]}}",
            ":1: search.sharing.tree.sum.follow: unknown key. Did you mean sharing.tree",
        ),
        ("tune: {metric: val.scor}", ":1: tune.metric: expected one of val.score"),
        ("tune: {metric: [val.score, seconds], mode: [max]}", "tune.mode: expected one for each"),
        ("tune: {asha: {grace: 5000}}", "tune.asha.grace: expected at most train.steps: 1000"),
        ("a: &a [*a]", ": expected a few levels of keys"),
        (
            "learner.inner_lr: 1",
            ":1: learner.inner_lr: expected nested keys, got a dotted one. Write `learner: {inner_lr: ...}`.",
        ),
        ("seed: 99999999999999999999999", ":1: seed: expected less than"),
        (
            "train: {device: cuda}\ntune: {gpus_per_trial: 0}",
            ":2: tune.gpus_per_trial: expected what train.device: cuda needs",
        ),
        ("data: {name: digits, shots: 0}", ":1: data.shots: expected "),
        ("data: {name: digits, queries: 0}", ":1: data.queries: expected "),
        ("data: {name: sinusoid, shots: -1}\nencoder: {name: mlp}", ":1: data.shots: expected "),
        (
            "data:\n  name: digits\n  episodes: classes\n  ways: 17",
            ":4: data.ways: expected at most the 16 classes of the smallest split, got 17. Lower data.ways.",
        ),
        ("data: {name: digits, episodes: classes, ways: 1}", ":1: data.ways: expected "),
        (
            "data: {name: omniglot, ways: 401}",
            ":1: data.ways: expected at most the 400 classes of the smallest split, got 401. Lower data.ways.",
        ),
        (
            "data: {name: omniglot, shots: 20}",
            ":1: data.shots: expected at most 19 of the 20 drawings",
        ),
        ("data: {name: omniglot, shots: 0}", ":1: data.shots: expected "),
        ("name: ../up", ":1: name: expected"),
    ],
)
def test_each_mistake_is_one_sentence(text: str, says: str, tmp_path: Path) -> None:
    """With its line."""
    assert says in refused(tmp_path, text)


def test_files_that_are_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="cannot be read as text"):
        load(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read as text"):
        load(tmp_path / "binary.yaml")


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    assert load(tmp_path / "empty.yaml") == Experiment()


def test_override_keeps_what_the_new_member_has_too() -> None:
    base = Experiment().override({"learner.inner_lr": 0.07, "learner.first_order": True})
    other = base.override({"learner.name": "reptile"})
    assert checked(other.learner, Reptile).inner_lr == 0.07
    assert not hasattr(other.learner, "first_order")


def test_override_reaches_an_optional_part_and_a_mapping() -> None:
    chosen = Experiment().override({"tune.asha.grace": 50, "weighting.weights.left": 2})
    assert present(chosen.tune.asha).grace == 50
    assert checked(chosen.weighting, StaticSpec).weights == {"left": 2.0}


@pytest.mark.parametrize("key", ["learner.inner_lrr", "learner.inner_lr.x", "nothing", "a.b.c"])
def test_override_of_an_unknown_key_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=key.split(".")[0]):
        Experiment().override({key: 1})


def test_dotted_names_are_those_of_the_configuration() -> None:
    names = set(dotted_names(Experiment))
    assert set(Experiment().flat()) - {"weighting.weights"} <= names
    assert {
        "learner.first_order",
        "learner.inner_optimizer",
        "sharing.own",
        "tune.asha.grace",
        "weighting.weights",
    } <= names


def test_the_seed_decides_the_model() -> None:
    first, same, other = (Experiment(seed=seed).build().init_params() for seed in (0, 0, 1))
    name = "model.heads.left.weight"
    assert first[name].equal(same[name])
    assert not first[name].equal(other[name])


def test_task_keys_may_join_a_new_member() -> None:
    changed = Experiment().override(
        {
            "sharing.tree.sum.stages": 1,
            "sharing.tree.sum.follows": "right",
            "sharing.name": "branching",
        }
    )
    assert changed.flat()["sharing.tree.sum.follows"] == "right"
    assert is_known("sharing.tree.sum.stages", Experiment) and is_known(
        "weighting.weights.any name", Experiment
    )
    assert not is_known("sharing.tree.sum.stage", Experiment) and not is_known(
        "sharing.strength.sum", Experiment
    )


def test_new_members_inherit_what_was_set() -> None:
    """Not what was a default."""
    gradnorm = Experiment().override({"weighting.name": "gradnorm"})
    assert gradnorm.override({"weighting.name": "auto_lambda"}).weighting.model_dump()["lr"] == 1e-3
    faster = gradnorm.override({"weighting.lr": 0.3})
    assert faster.override({"weighting.name": "auto_lambda"}).weighting.model_dump()["lr"] == 0.3


def test_large_spaces_are_sampled_not_refused() -> None:
    """Over 2,000 combinations, the condition on the last architecture among those that are not enumerated."""
    names = ["hard", "soft", "cross_stitch", "mmoe", "cgc", "attention"]
    space = {
        "train.lr": {"choice": [0.1 / 2**i for i in range(12)]},
        "train.meta_batch": {"choice": list(range(8, 28))},
        "train.clip_norm": {"choice": [1.0 + i for i in range(10)]},
        "sharing.name": {"choice": names},
        "sharing.heads": {"int": [1, 2], "when": {"sharing.name": "attention"}},
    }
    experiment = parse(Experiment(encoder=MLPSpec()).model_dump(mode="json") | {"search": space})
    check_space(experiment)
