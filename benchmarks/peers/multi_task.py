"""A step of multi-task training whose weighting needs the gradient of every task.

Hard sharing of LeNet (64 pictures of 1 x 36 x 36) or ResNet-18 (16 of 3 x 32 x 32) with a linear
head of 10 classes for each task.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor

from benchmarks.hard_sharing import ModelKind, Network, network
from benchmarks.peers.installed import is_installed, without_init
from benchmarks.peers.ours import Ours
from benchmarks.peers.subject import Contest, Setting, Subject
from benchmarks.peers.timing import Way
from raymtl.encoders import Encoder, LeNetSpec, ResNet18Spec
from raymtl.learners import MAML
from raymtl.sharing import HardSpec
from raymtl.step.algorithm import Algorithm
from raymtl.tasks import classification
from raymtl.training.fastest import Way as TaskWay
from raymtl.types import Batch, Episode
from raymtl.weighting.cagrad import CAGradSpec
from raymtl.weighting.mgda import MGDASpec
from raymtl.weighting.pcgrad import PCGradSpec

METHODS = {"pcgrad": PCGradSpec, "mgda": MGDASpec, "cagrad": CAGradSpec}


class MultiTask(NamedTuple):
    """A network and a weighting."""

    kind: ModelKind
    num_tasks: int
    method: str


def subjects() -> list[Subject]:
    """Both networks with 2 and 8 tasks."""
    found = []
    kinds: Sequence[ModelKind] = ("lenet", "resnet18")
    for kind in kinds:
        for num_tasks in (2, 8):
            for method in METHODS:
                found.append(_subject(MultiTask(kind, num_tasks, method)))
    return found


def _subject(multi_task: MultiTask) -> Subject:
    kind, num_tasks, method = multi_task
    compared: Callable[[Setting], dict[str, list[Tensor]]] | None = None
    # Of more tasks PCGrad's order is random; CAGrad's solvers stop at tolerances of their own.
    if num_tasks == 2 and method != "cagrad":
        compared = partial(gradients, multi_task)
    name = f"{kind} {method} of {num_tasks} tasks"
    return Subject(name, "step", partial(contest, multi_task), compared)


def contest(multi_task: MultiTask, setting: Setting) -> Contest:
    """raymtl's step, TorchJD's in its three ways, and LibMTL's."""
    net = _on_device(network(multi_task.kind, multi_task.num_tasks), setting.device)
    ours = _ours(net, multi_task, setting.device)
    ways = {f"raymtl {axis}": ours.way(TaskWay(axis)) for axis in ("loop", "vmap")}
    if setting.alone:
        base = setting.alone
    else:
        base = f"raymtl {ours.auto()}"
    if not setting.ours and is_installed("torchjd"):
        ways |= {name: Way(run) for name, run in _torchjd(net, multi_task.method).items()}
    if not setting.ours and is_installed("LibMTL"):
        ways["LibMTL"] = Way(_libmtl(net, multi_task.method))
    with_peaks: list[str] = []
    if multi_task == MultiTask("resnet18", 8, "pcgrad"):
        with_peaks = list(ways)
    if multi_task.kind == "lenet":
        ways = {name: way._replace(repeat=5) for name, way in ways.items()}
    return Contest(ways, base, None, with_peaks)


def gradients(multi_task: MultiTask, setting: Setting) -> dict[str, list[Tensor]]:
    """The gradient of the trunk by raymtl and by TorchJD, whose MGDA is 1/K of raymtl's."""
    net = _on_device(network(multi_task.kind, multi_task.num_tasks), setting.device)
    ours = _ours(net, multi_task, setting.device)
    found = {"raymtl": list(ours.gradients()[: len(net.shared)])}
    scale = multi_task.num_tasks if multi_task.method == "mgda" else 1
    if is_installed("torchjd"):
        for name, run in _torchjd(net, multi_task.method).items():
            run()
            found[name] = [scale * value.grad for value in net.shared if value.grad is not None]
    return found


def _ours(net: Network, multi_task: MultiTask, device: str) -> Ours:
    """raymtl's algorithm with the network's parameters, and its batch as one episode."""
    num_tasks = multi_task.num_tasks
    tasks = tuple(classification(f"t{number}", 10) for number in range(num_tasks))
    shape = tuple(net.inputs.shape[1:])
    if multi_task.kind == "lenet":
        encoder: Encoder = LeNetSpec().build(shape)
    else:
        encoder = ResNet18Spec(stem="imagenet").build(shape)
    model = HardSpec().build(tasks, [encoder])
    state = {f"encoders.0.{name}": value for name, value in net.trunk.state_dict().items()}
    for number, head in enumerate(net.heads):
        state |= {f"heads.t{number}.{name}": value for name, value in head.state_dict().items()}
    model.load_state_dict(state)
    weighting = METHODS[multi_task.method]().build(tasks)
    targets = {task.name: net.targets[number][None] for number, task in enumerate(tasks)}
    batch = Batch(net.inputs[None], targets, {})
    algorithm = Algorithm(tasks, model, weighting, MAML(inner_steps=0))
    return Ours(algorithm, Episode(batch, batch), device)


def _on_device(net: Network, device: str) -> Network:
    return Network(
        net.trunk.to(device), net.heads.to(device), net.inputs.to(device), net.targets.to(device)
    )


def _torchjd(net: Network, method: str) -> dict[str, Callable[[], object]]:
    """TorchJD (arXiv:2406.16232): all tasks in one backward pass, one by one, and by parts."""
    from benchmarks.weighting import their_step

    return {
        "torchjd": their_step(net, method, None),
        "torchjd, chunks of 1": their_step(net, method, 1),
        "torchjd by parts, chunks of 1": their_step(net, method, 1, by_parts=True),
    }


def _libmtl(net: Network, method: str) -> Callable[[], object]:
    """LibMTL (arXiv:2203.14338): one backward pass for each task, then the combined gradient."""
    without_init("LibMTL", "LibMTL.weighting")
    from LibMTL.weighting.CAGrad import CAGrad
    from LibMTL.weighting.MGDA import MGDA
    from LibMTL.weighting.PCGrad import PCGrad

    libraries: dict[str, tuple[Any, dict[str, Any]]] = {
        "pcgrad": (PCGrad, {}),
        "mgda": (MGDA, {"mgda_gn": "none"}),
        "cagrad": (CAGrad, {"calpha": 0.5, "rescale": 1}),
    }
    base, settings = libraries[method]

    own = base()
    # LibMTL's trainer mixes these two in, of its own architectures.
    own.get_share_params = net.trunk.parameters
    own.zero_grad_share_params = partial(net.trunk.zero_grad, set_to_none=False)
    own.task_num, own.device, own.rep_grad = len(net.heads), net.inputs.device, False
    own.init_param()

    def step() -> None:
        own.zero_grad_share_params()
        net.heads.zero_grad()
        own.backward(net.losses()[1], **settings)

    return step
