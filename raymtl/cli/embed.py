"""`data embed`: computes the features of a frozen network ahead of trainings."""

from typing import TYPE_CHECKING

from raymtl.cli.options import Address, Config, Sets, load_config
from raymtl.reporting.console import plain_console
from raymtl.reporting.notes import print_notes
from raymtl.reporting.progress import rows_progress
from raymtl.types import UserError

if TYPE_CHECKING:
    from raymtl.config import Experiment
    from raymtl.features.compute import Driver


def embed_data(config: Config, sets: Sets = [], address: Address = None) -> None:  # noqa: B006
    """Compute the features of all pictures by a frozen network once; trainings read them."""
    experiment = load_config(config, sets)
    from raymtl.features.load import with_features
    from raymtl.features.network import frozen_encoder

    if frozen_encoder(experiment) is None:
        raise UserError(
            f"{config}: encoder.frozen: expected true, for the features of other networks change "
            "while they are trained, got false. Set it, with encoder.name: timm or torchvision."
        )
    with plain_console(stderr=True).status("reading the data"):
        arrays = experiment.data.load()
    driver = _driver(experiment, address)
    with rows_progress() as report:
        loaded = with_features(experiment, arrays, driver=driver, report=report)
    console = plain_console(highlight=False, soft_wrap=True)
    print_notes(console, [*experiment.data.notes(arrays), *loaded.notes])


def _driver(experiment: "Experiment", address: str | None) -> "Driver":
    """Ray Data if a cluster is given; else this process."""
    from raymtl.cluster.address import resolve
    from raymtl.features.compute import in_this_process

    if resolve(address) is None:
        return in_this_process
    from raymtl.distributed.connection import start_ray
    from raymtl.distributed.embed_rows import on_ray

    start_ray(address)
    return on_ray(experiment.train.device)
