"""Checks of settings that must go together. Each raises UserError where they do not."""

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase

from raymtl.config.sections import Train, Tune
from raymtl.data import Source
from raymtl.encoders import Encoder, EncoderSpec, PretrainedSpec
from raymtl.encoders.norm import BatchStatistics
from raymtl.learners import LearnerSpec
from raymtl.modes import ModeSpec
from raymtl.schema.names import nearest
from raymtl.sharing import SharingSpec
from raymtl.types import UserError
from raymtl.weighting import WeightingSpec


def check_learner(learner: LearnerSpec, data: Source) -> None:
    """Refuses a learner that cannot learn the tasks."""
    reason = learner.check(data.make_tasks())
    if reason:
        raise UserError(
            f"learner.name: {learner.name} cannot learn data.tasks: {list(data.task_names)}, since "
            f"{reason}. Choose another learner or other tasks."
        )


def check_weighting(
    weighting: WeightingSpec, learner: LearnerSpec, mode: ModeSpec, task_names: Sequence[str]
) -> None:
    """Refuses a weighting of gradients where there are not several gradients to weigh."""
    if not weighting.needs_gradients:
        return
    if not learner.uses_query_gradient:
        raise UserError(
            f"weighting.name: {weighting.name} weighs gradients of the query losses, and "
            f"learner.name: {learner.name} has none to weigh. Choose a weighting of losses "
            "such as static, or another learner."
        )
    if len(task_names) == 1:
        raise UserError(
            f"weighting.name: {weighting.name} needs the gradients of several tasks, got "
            f"data.tasks: {list(task_names)}. Choose weighting.name: static or add a task."
        )
    if mode.one_task_a_step:
        raise UserError(
            f"weighting.name: {weighting.name} needs the gradients of several tasks, and "
            f"mode.name: {mode.name} lets one task count in each step. Choose "
            "weighting.name: static or another mode."
        )


def check_mode(mode: ModeSpec, learner: LearnerSpec) -> None:
    """Refuses a mode that divides a gradient which the learner does not have."""
    if mode.divides_gradient and not learner.uses_query_gradient:
        raise UserError(
            f"mode.name: {mode.name} divides the gradient of the query losses, and "
            f"learner.name: {learner.name} has none to divide. Choose mode.name: weighted or "
            "another learner."
        )


def check_rows(train: Train, learner: LearnerSpec, sharing: SharingSpec) -> None:
    """Refuses single rows for a learner that needs support sets, and for terms of whole batches."""
    if train.batch_size is not None and learner.reads_support:
        raise UserError(
            f"train.batch_size: expected none with learner.name: {learner.name}, whose steps are "
            f"of episodes, got {train.batch_size}. Set train.meta_batch and data.queries in its "
            "place, or choose learner.name: none."
        )
    if train.batch_size is not None and sharing.has_batch_terms:
        raise UserError(
            f"train.batch_size: expected none with sharing.name: {sharing.name}, which compares "
            f"the rows of an episode with each other, got {train.batch_size}. Set train.meta_batch "
            "and data.queries in its place."
        )


def rows_of_epoch(data: Source) -> int:
    """As many rows as the task with the most labels has. Raises UserError where none are finite."""
    arrays = data.load()
    if not arrays:
        raise UserError(
            f"train.epochs: expected train.steps with data.name: {getattr(data, 'name', '?')}, "
            "which computes new examples without end, got epochs. Set train.steps in its place."
        )
    return max(data.sizes(arrays).values())


def check_epochs(train: Train, searched: Iterable[str]) -> None:
    """Refuses trials of unequal numbers of steps."""
    if train.epochs is not None and "train.batch_size" in searched:
        raise UserError(
            "search.train.batch_size: expected train.steps with it, since trials are compared "
            f"after as many steps, got train.epochs: {train.epochs:g}. Set train.steps in its "
            "place."
        )


def check_support(learner: LearnerSpec, data: Source) -> None:
    """Refuses classes that only a support set tells apart for a learner that reads none."""
    if not learner.reads_support and data.numbers_classes_anew:
        raise UserError(
            f"learner.name: {learner.name} reads no support set, and data.name: "
            f"{getattr(data, 'name', '?')} numbers the classes anew in every episode, so that "
            "nothing else tells them apart. Choose another learner or other data.episodes."
        )


def check_encoder(encoder: EncoderSpec, learner: LearnerSpec) -> None:
    """Refuses scales for every inner step where there are no inner steps."""
    if encoder.has_per_step_params and not learner.has_per_step_params:
        raise UserError(
            "encoder.norm: per_step has scales for every inner step, and "
            f"learner.name: {learner.name}, as it is set, has no steps to tell apart. Choose "
            "encoder.norm: batch or another learner."
        )


def check_norms(encoder: Encoder, learner: LearnerSpec) -> None:
    """Refuses batch statistics where there is no support set to take them of."""
    if learner.reads_support:
        return
    if any(isinstance(module, BatchStatistics) for module in encoder.modules()):
        raise UserError(
            "encoder: its batch norms take the statistics of a support or query set, and "
            f"learner.name: {learner.name} has single rows. Choose encoder.norm: group or layer, "
            "encoder.batch_norm: frozen, or another learner."
        )


def check_stages(sharing: SharingSpec, encoder: Encoder) -> None:
    """Refuses an architecture that works between the encoder's stages, where there are none."""
    if sharing.needs_stages and not encoder.has_stages:
        raise UserError(
            f"sharing.name: {sharing.name} separates or mixes tasks between the stages of the "
            "encoder, and this one names none. Name them in from_module, choose another "
            "encoder.model, with encoder.frozen: true give encoder.trunk, or choose sharing.name: "
            "hard."
        )


def check_frozen(encoder: EncoderSpec, data: Source) -> None:
    """Refuses data whose inputs a frozen network cannot compute the features of once."""
    if isinstance(encoder, PretrainedSpec) and encoder.frozen:
        data.input_arrays()


def check_frozen_search(encoder: EncoderSpec, searched: Iterable[str]) -> None:
    """Refuses a search that would change the features, which all trials read."""
    is_frozen = isinstance(encoder, PretrainedSpec) and encoder.frozen
    for key in searched:
        stay = key == "encoder.lr_scale" or key.startswith("encoder.trunk.")
        changes = key.startswith("encoder.") and not stay
        if key == "encoder.frozen" or (is_frozen and changes):
            raise UserError(
                f"search.{key}: expected keys of encoder.trunk, or encoder.lr_scale, with "
                "encoder.frozen, since "
                "all trials read the same features, got another. Start a search for each of its "
                "values."
            )


def check_graph(train: Train, encoder: EncoderSpec) -> None:
    """Refuses compiled graphs of what drops: torch's compiler ends the process over its masks."""
    shares = {key: getattr(encoder, key, 0) for key in ("dropout", "drop_path")}
    dropping = [f"encoder.{key}" for key, share in shares.items() if share]
    if train.graph == "compile" and dropping:
        raise UserError(
            f"train.graph: expected auto, replay or none with {dropping[0]}, whose masks cannot be "
            "compiled, got compile. Choose one of them."
        )


def check_workers(train: Train) -> None:
    """Refuses more workers than episodes, and a minimum above the number of workers."""
    if train.num_episodes < train.workers:
        key, unit = "train.meta_batch", "an episode"
        if train.batch_size is not None:
            key, unit = "train.batch_size", "a row"
        raise UserError(
            f"{key}: expected {unit} for each of train.workers: "
            f"{train.workers}, got {train.num_episodes}. Raise it or take fewer workers."
        )
    if train.num_min_workers > train.workers:
        raise UserError(
            f"train.min_workers: expected at most train.workers: {train.workers}, got "
            f"{train.min_workers}. Lower it, or raise train.workers."
        )


def check_lanes(data: Source, train: Train) -> None:
    """Refuses more lanes than episodes, of which some would be empty."""
    if data.lanes > train.num_episodes:
        key = "train.meta_batch"
        if train.batch_size is not None:
            key = "train.batch_size"
        raise UserError(
            f"data.lanes: expected at most {key}: {train.num_episodes}, got {data.lanes}. "
            f"Lower it, or raise {key}."
        )


def check_search(tune: Tune, train: Train) -> None:
    """Refuses a first rung after the last step, and GPUs that contradict the device."""
    if tune.asha and tune.asha.grace > train.steps:
        raise UserError(
            f"tune.asha.grace: expected at most train.steps: {train.steps}, got "
            f"{tune.asha.grace}. Lower it."
        )
    gpus = tune.gpus_per_trial
    if gpus == "auto":
        return
    if (train.device == "cuda" and not gpus) or (train.device == "cpu" and gpus):
        raise UserError(
            f"tune.gpus_per_trial: expected what train.device: {train.device} needs, got "
            f"{gpus:g}. Leave it at auto, or set train.device: auto."
        )


def check_selection(train: Train, known_metrics: Sequence[str]) -> None:
    """Refuses a score for `keep` and `patience` that no training has."""
    scores = [name for name in known_metrics if name.startswith("val.")]
    if train.metric not in scores:
        raise UserError(
            f"train.metric: expected one of {', '.join(scores)}, got "
            f"'{train.metric}'.{nearest(train.metric, scores)}"
        )


def check_no_decay(patterns: Sequence[str], parameter_names: Callable[[], Sequence[str]]) -> None:
    """Refuses a pattern that no weight of the model has as its name."""
    if not patterns:
        return
    names = parameter_names()
    for number, pattern in enumerate(patterns):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(
                f"train.no_decay.{number}: expected a pattern of names of the model's weights, "
                f"such as {names[0]}, got '{pattern}', which none has.{nearest(pattern, names)}"
            )


def check_objectives(tune: Tune, known_metrics: Sequence[str]) -> None:
    """Refuses metrics that no trial reports, and modes that are not one for each of them."""
    if len(tune.modes) != len(tune.metrics):
        raise UserError(
            f"tune.mode: expected one for each of tune.metric: {list(tune.metrics)}, got "
            f"{list(tune.modes)}."
        )
    keyed = [("tune.metric", metric) for metric in tune.metrics]
    for key, metric in [*keyed, ("tune.asha.metric", tune.asha_metric)]:
        if metric not in known_metrics:
            raise UserError(
                f"{key}: expected one of {', '.join(known_metrics)}, got "
                f"'{metric}'.{nearest(metric, known_metrics)}"
            )
