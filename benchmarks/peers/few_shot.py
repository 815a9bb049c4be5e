"""Few-shot learning: raymtl's ways to run a step, and the same learner by other libraries."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.peers import in_jax
from benchmarks.peers.installed import is_installed
from benchmarks.peers.loops import Peer, Plan, Tasks, gradient
from benchmarks.peers.ours import Ours
from benchmarks.peers.subject import Contest, Setting
from benchmarks.peers.timing import Way, captured, gigaflop
from raymtl.data import Arrays
from raymtl.step.traced import Graph
from raymtl.training.fastest import Way as TaskWay

PEER_TASKS = 8
"""How many tasks a peer that takes one after the other is timed on."""
PARITY_TASKS = 2


class FewShot(NamedTuple):
    """A learner on tasks, in raymtl's words and as plain torch."""

    text: Callable[[int], str]
    """The configuration with this many tasks in a meta-batch."""
    num_tasks: int
    network: Callable[[], nn.Module]
    plan: Plan
    peers: Mapping[str, Peer]
    """By the name of the library; that of torch alone counts the operations."""
    ways: Sequence[TaskWay]
    """Those of raymtl that are timed beside the automatic choice."""
    graphs: Sequence[Graph] = ("replay",)
    arrays: Callable[[], Arrays | None] = lambda: None
    in_jax: bool = False
    repeat: int = 1
    """Runs of raymtl that are timed together."""
    peaks: bool = False
    """Whether memory is measured too."""


def contest(few_shot: FewShot, setting: Setting) -> Contest:
    """The ways of raymtl and, unless it runs alone, of the libraries that are installed."""
    num_tasks = min(few_shot.num_tasks, 4) if setting.quick else few_shot.num_tasks
    ours = Ours.of_text(few_shot.text(num_tasks), setting.device, few_shot.arrays())
    base, ways = _ours(few_shot, ours, setting)
    num_peer_tasks = num_tasks if setting.alone else min(num_tasks, PEER_TASKS)
    network, tasks = _in_torch(few_shot, ours, num_peer_tasks)
    torch_alone = _peer(few_shot, "torch", network, tasks)
    operations = None if setting.alone else gigaflop(torch_alone)
    if not setting.ours:
        ways["torch"] = torch_alone
        graph = captured(torch_alone) if setting.device == "cuda" and not setting.alone else None
        if graph is not None:
            ways["torch, CUDA graph"] = graph
        for name in _libraries(few_shot):
            ways[name] = _peer(few_shot, name, network, tasks)
        # The pinned JAX computes on the CPU.
        if few_shot.in_jax and is_installed("jax") and setting.device == "cpu":
            everything = Tasks(*ours.tensors(num_tasks))
            run = in_jax.step(network, everything, few_shot.plan)
            ways["JAX, vmap and jit"] = Way(run, num_tasks, few_shot.repeat)
    with_peaks: list[str] = []
    if few_shot.peaks:
        others = [name for name in ways if not name.startswith("raymtl")]
        with_peaks = list(dict.fromkeys([base, "raymtl loop", "raymtl vmap", *others]))
    return Contest(ways, base, operations, with_peaks)


def gradients(few_shot: FewShot, setting: Setting) -> dict[str, list[Tensor]]:
    """The meta-gradient of every side on the same few tasks."""
    ours = Ours.of_text(few_shot.text(PARITY_TASKS), setting.device, few_shot.arrays())
    found = {"raymtl": ours.gradients()}
    network, tasks = _in_torch(few_shot, ours, PARITY_TASKS)
    for name in ["torch", *_libraries(few_shot)]:
        found[name] = gradient(few_shot.peers[name], network, tasks, few_shot.plan)
    if few_shot.in_jax and is_installed("jax"):
        found["jax"] = in_jax.gradient(network, tasks, few_shot.plan)
    return found


def _ours(few_shot: FewShot, ours: Ours, setting: Setting) -> tuple[str, dict[str, Way]]:
    """The name of the way that is chosen automatically, and raymtl's ways."""
    if setting.alone:
        chosen = TaskWay.parsed(_task_way(setting.alone)) or TaskWay("loop")
    else:
        chosen = ours.auto()
    ways = {f"raymtl {chosen}": ours.way(chosen)}
    few = ours if setting.alone else ours.first(PEER_TASKS)
    for way in few_shot.ways:
        if way != chosen:
            ways[f"raymtl {way}"] = (ours if way == TaskWay("vmap") else few).way(way)
    for graph in few_shot.graphs:
        if graph == "compile" and setting.quick:
            continue  # compiling takes longer than all the rest
        ways[f"raymtl {chosen}, {graph}"] = ours.way(chosen, graph)
    ways = {name: way._replace(repeat=few_shot.repeat) for name, way in ways.items()}
    if setting.device == "cuda" and not setting.alone:
        graph_of_all = captured(ways[f"raymtl {chosen}"])
        if graph_of_all is not None:
            ways[f"raymtl {chosen}, CUDA graph"] = graph_of_all
    return f"raymtl {chosen}", ways


def _task_way(name: str) -> str:
    """How episodes are run, out of the name of a way of raymtl."""
    return name.removeprefix("raymtl ").partition(",")[0]


def _libraries(few_shot: FewShot) -> list[str]:
    return [name for name in few_shot.peers if name != "torch" and is_installed(name)]


def _peer(few_shot: FewShot, name: str, network: nn.Module, tasks: Tasks) -> Way:
    run = partial(gradient, few_shot.peers[name], network, tasks, few_shot.plan)
    return Way(run, len(tasks.query))


def _in_torch(few_shot: FewShot, ours: Ours, num_tasks: int) -> tuple[nn.Module, Tasks]:
    """The same network with the same parameters, and the first tasks."""
    network = few_shot.network().to(next(iter(ours.params.values())).device)
    with torch.no_grad():
        for own, value in zip(network.parameters(), ours.model().values(), strict=True):
            own.copy_(value.view_as(own))
    return network, Tasks(*ours.tensors(num_tasks))
