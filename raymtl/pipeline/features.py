"""The features of a frozen network, for all trainings of a run."""

import time

from raymtl.config import Experiment
from raymtl.data import Arrays
from raymtl.distributed.embed_rows import on_ray
from raymtl.features.load import Loaded, with_features
from raymtl.features.network import frozen_encoder, keep_weights
from raymtl.reporting.progress import SILENT_S
from raymtl.reporting.terminal import Row, View
from raymtl.storage.fence import Attempt


def embed(experiment: Experiment, attempt: Attempt, arrays: Arrays, view: View) -> Loaded:
    """The arrays with features in the place of pictures if the network is frozen. The run keeps the
    values of the network. Ray must have been started.
    """
    if frozen_encoder(experiment) is None:
        return Loaded(arrays, ())
    run = attempt.folder
    keep_weights(experiment, run, attempt.publish)
    begin = time.monotonic()

    def report(done: int, rows: int) -> None:
        if time.monotonic() - begin < SILENT_S:
            return
        state = "running"
        if done == rows:
            state = "complete"
        view.show("features", Row(done, rows, state, "", ""))

    driver = on_ray(experiment.train.device)
    loaded = with_features(experiment, arrays, run=run, driver=driver, report=report)
    for note in loaded.notes:
        view.say(str(note))
    return loaded
