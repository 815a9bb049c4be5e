"""Features in the place of pictures, for an experiment with a frozen network."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from raymtl.config import Experiment
from raymtl.data import Arrays
from raymtl.encoders import PretrainedSpec
from raymtl.features.cache import FeatureCache
from raymtl.features.compute import Driver, FeatureJob, Report, in_this_process
from raymtl.features.network import FrozenNetwork, frozen_encoder, load_network
from raymtl.features.rows import find_different
from raymtl.storage import strict_json
from raymtl.storage.notes import Note
from raymtl.storage.places import absolute, expand
from raymtl.types import UserError

FOLDER = ".features"
FORMAT = 1
"""Raised when the same description no longer means the same features."""


class Loaded(NamedTuple):
    """What a source loaded, with features in the place of pictures."""

    arrays: Arrays
    notes: tuple[Note, ...]


def _silent(done: int, rows: int) -> None:
    """The caller shows no progress."""


def with_features(
    experiment: Experiment,
    arrays: Arrays,
    *,
    run: Path | None = None,
    driver: Driver = in_this_process,
    report: Report = _silent,
) -> Loaded:
    """The arrays of the experiment's data, with features in the place of pictures if its network
    is frozen.

    Args:
        experiment: its data and its network.
        arrays: what its data loaded.
        run: a run folder, which may keep the values of the network, and beside which the cache is.
        driver: computes the features that the cache lacks.
        report: is told how far that is.

    Raises:
        UserError: for data that are streamed, and for weights that cannot be read.
    """
    encoder = frozen_encoder(experiment)
    if encoder is None:
        return Loaded(arrays, ())
    keys = _input_keys(experiment, arrays)

    def load() -> FrozenNetwork:
        network = load_network(experiment, run)
        assert network is not None
        return network

    rows = find_different([arrays[key].reshape(-1, *experiment.data.input_shape) for key in keys])
    about = _describe(experiment, encoder)
    shape = encoder.feature_shape
    cache = FeatureCache(_folder(experiment, encoder, run) / _key_of(about), math.prod(shape))
    computed = FeatureJob(rows, about, cache, load, driver, report).run()
    features = {
        key: _of_rows(computed.features, numbers).reshape(-1, *shape)
        for key, numbers in zip(keys, rows.numbers, strict=True)
    }
    return Loaded({**arrays, **features}, computed.notes)


def _input_keys(experiment: Experiment, arrays: Arrays) -> Sequence[str]:
    """The arrays that hold pictures. Raises UserError where the data are streamed."""
    keys = experiment.data.input_arrays()
    if any(key not in arrays for key in keys):
        raise _streamed()
    return keys


def _of_rows(features: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The features of rows with these numbers; they are not copied if all rows differ."""
    if np.array_equal(numbers, np.arange(len(features))):
        return features
    return np.take(features, numbers, axis=0)


def _describe(experiment: Experiment, encoder: PretrainedSpec) -> dict[str, object]:
    """Everything that the features of a picture depend on."""
    assert encoder.found is not None
    shape = experiment.data.input_shape
    return {
        "format": FORMAT,
        "network": encoder.found.network,
        "weights": encoder.found.sha256,
        "input_shape": list(shape),
        **encoder.preprocessing(shape),
        **_stages_of(encoder),
    }


def _stages_of(encoder: PretrainedSpec) -> dict[str, object]:
    if not encoder.frozen_stages:
        return {}
    return {"stages": encoder.frozen_stages}


def _key_of(about: Mapping[str, object]) -> str:
    return hashlib.sha256(strict_json.dumps(about).encode()).hexdigest()[:16]


def _folder(experiment: Experiment, encoder: PretrainedSpec, run: Path | None) -> Path:
    """Where the caches of all networks are."""
    if encoder.cache is not None:
        place = absolute(encoder.cache, "encoder.cache")
        if "://" in expand(place, "encoder.cache"):
            raise UserError(
                f"encoder.cache: expected a folder, got the URL {place}. Choose a folder that this "
                "machine reaches."
            )
        return Path(place)
    if run is not None:
        return run.absolute().parent / FOLDER
    return Path(experiment.output).absolute() / FOLDER


def _streamed() -> UserError:
    return UserError(
        "encoder.frozen: expected data that fit into memory, got larger ones, which are streamed. "
        "Raise data.in_memory_mb, take fewer rows, or keep stages constant by "
        "encoder.frozen_stages."
    )
