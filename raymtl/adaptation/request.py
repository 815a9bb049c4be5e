"""What a trained run is adapted to, as the user asks for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from raymtl.config import Experiment
from raymtl.evaluation.evaluate import load_model
from raymtl.step.algorithm import Algorithm
from raymtl.types import Params, UserError


@dataclass(frozen=True)
class AdaptationRequest:
    """The run, and the examples: a file of the user's, or a held-out test episode of the source."""

    run: Path
    support: Path | None = None
    """The file; its labelled rows are learned from."""
    query: Path | None = None
    """Another file, whose rows are predicted in place of the unlabelled ones of `support`."""
    episode: int = 0
    """The number of the test episode, where there is no file."""
    task: str | None = None
    """The only task that the file has labels of."""
    name: str | None = None
    """Of the folder below RUN/adapted; by the examples unless given."""
    moved: Mapping[str, str] = field(default_factory=dict)
    """Where the run's own data are now (`Source.moved`)."""

    def load(self) -> tuple[Experiment, Algorithm, Params]:
        """The run's best model and its experiment, with the data where they are now.

        Raises UserError for a name that cannot be that of a folder.
        """
        name = self.name
        if name is not None and (Path(name).name != name or name in (".", "..")):
            raise UserError(f"--name: expected a plain name for a folder, got '{name}'.")
        experiment, algorithm, params = load_model(self.run / "best")
        if self.moved:
            data = experiment.data.moved(self.moved)
            experiment = experiment.model_copy(update={"data": data})
        return experiment, algorithm, params
