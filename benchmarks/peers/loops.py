"""The learners as other libraries run them: one task after the other, on a module of plain torch.

Each function leaves the mean meta-gradient of the tasks in the parameters' `grad`. `plain`,
`reptile` and `protonet` need torch alone: of Reptile and prototypical networks learn2learn has
examples written in plain torch, which these follow.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.peers.installed import without_init

Loss = Callable[[Tensor, Tensor], Tensor]


class Plan(NamedTuple):
    """What is learned of each task, and how."""

    loss: Loss
    inner_lr: float
    inner_steps: int
    first_order: bool = False


class Tasks(NamedTuple):
    """Support and query of all tasks, each [E, N, ...]."""

    support: Tensor
    support_targets: Tensor
    query: Tensor
    query_targets: Tensor

    def each(self) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """One task after the other."""
        yield from zip(*self, strict=True)


Peer = Callable[[nn.Module, Tasks, Plan], None]


def gradient(peer: Peer, network: nn.Module, tasks: Tasks, plan: Plan) -> list[Tensor]:
    """The meta-gradient of a peer, in the order of the parameters."""
    network.zero_grad()
    peer(network, tasks, plan)
    return [
        torch.zeros_like(value) if value.grad is None else value.grad
        for value in network.parameters()
    ]


def learn2learn(model: nn.Module, tasks: Tasks, plan: Plan) -> None:
    """MAML of learn2learn (arXiv:2008.12284)."""
    without_init("learn2learn", "learn2learn.algorithms")
    from learn2learn.algorithms.maml import MAML

    maml = MAML(model, lr=plan.inner_lr, first_order=plan.first_order)
    for support, targets, query, query_targets in tasks.each():
        learner = maml.clone()
        for _ in range(plan.inner_steps):
            learner.adapt(plan.loss(learner(support), targets))
        (plan.loss(learner(query), query_targets) / len(tasks.query)).backward()


def higher(model: nn.Module, tasks: Tasks, plan: Plan) -> None:
    """MAML by a patched module of `higher` (arXiv:1910.01727)."""
    import higher as library

    optimizer = torch.optim.SGD(model.parameters(), lr=plan.inner_lr)
    for support, targets, query, query_targets in tasks.each():
        context = library.innerloop_ctx(
            model, optimizer, copy_initial_weights=False, track_higher_grads=not plan.first_order
        )
        with context as (learner, inner):
            for _ in range(plan.inner_steps):
                inner.step(plan.loss(learner(support), targets))
            loss = plan.loss(learner(query), query_targets) / len(tasks.query)
            if plan.first_order:
                _add(model, torch.autograd.grad(loss, list(learner.parameters())))
            else:
                loss.backward()


def torchopt(model: nn.Module, tasks: Tasks, plan: Plan) -> None:
    """MAML by a differentiable optimiser of TorchOpt (arXiv:2211.06934)."""
    import torchopt as library

    inner = library.MetaSGD(model, lr=plan.inner_lr)
    start = library.extract_state_dict(model, by="reference")
    state = library.extract_state_dict(inner, by="reference")
    for support, targets, query, query_targets in tasks.each():
        for _ in range(plan.inner_steps):
            inner.step(plan.loss(model(support), targets))
        (plan.loss(model(query), query_targets) / len(tasks.query)).backward()
        library.recover_state_dict(model, start)
        library.recover_state_dict(inner, state)


def plain(model: nn.Module, tasks: Tasks, plan: Plan) -> None:
    """MAML by torch alone: functional calls and `torch.autograd.grad`."""
    for support, targets, query, query_targets in tasks.each():
        start: dict[str, Tensor] = dict(model.named_parameters())
        if plan.first_order:
            start = _as_leaves(start)
        values = start
        for _ in range(plan.inner_steps):
            loss = plan.loss(functional_call(model, values, (support,)), targets)
            grads = torch.autograd.grad(
                loss, list(values.values()), create_graph=not plan.first_order
            )
            moved = zip(values.items(), grads, strict=True)
            values = {name: value - plan.inner_lr * grad for (name, value), grad in moved}
            if plan.first_order:
                values = _as_leaves(values)
        output = functional_call(model, values, (query,))
        loss = plan.loss(output, query_targets) / len(tasks.query)
        if plan.first_order:
            _add(model, torch.autograd.grad(loss, list(values.values())))
        else:
            loss.backward()


def anil(model: nn.Module, tasks: Tasks, plan: Plan) -> None:
    """ANIL of learn2learn: MAML of the head alone, on features that are computed once."""
    without_init("learn2learn", "learn2learn.algorithms")
    from learn2learn.algorithms.maml import MAML

    features, head = _in_two(model)
    maml = MAML(head, lr=plan.inner_lr, first_order=plan.first_order)
    for support, targets, query, query_targets in tasks.each():
        learner = maml.clone()
        known, asked = features(support), features(query)
        for _ in range(plan.inner_steps):
            learner.adapt(plan.loss(learner(known), targets))
        (plan.loss(learner(asked), query_targets) / len(tasks.query)).backward()


def plain_anil(model: nn.Module, tasks: Tasks, plan: Plan) -> None:
    """ANIL by torch alone."""
    features, head = _in_two(model)
    for support, targets, query, query_targets in tasks.each():
        known, asked = features(support), features(query)
        values: dict[str, Tensor] = dict(head.named_parameters())
        for _ in range(plan.inner_steps):
            loss = plan.loss(functional_call(head, values, (known,)), targets)
            grads = torch.autograd.grad(loss, list(values.values()), create_graph=True)
            moved = zip(values.items(), grads, strict=True)
            values = {name: value - plan.inner_lr * grad for (name, value), grad in moved}
        output = functional_call(head, values, (asked,))
        (plan.loss(output, query_targets) / len(tasks.query)).backward()


def reptile(model: nn.Module, tasks: Tasks, plan: Plan) -> None:
    """Reptile (arXiv:1803.02999) on copies of the module; the query is scored, as raymtl does."""
    for support, targets, query, query_targets in tasks.each():
        learner = copy.deepcopy(model)
        learner.zero_grad()
        optimizer = torch.optim.SGD(learner.parameters(), lr=plan.inner_lr)
        for _ in range(plan.inner_steps):
            optimizer.zero_grad()
            plan.loss(learner(support), targets).backward()
            optimizer.step()
        with torch.no_grad():
            plan.loss(learner(query), query_targets)
        pairs = zip(model.parameters(), learner.parameters(), strict=True)
        _add(model, [(old.detach() - new.detach()) / len(tasks.query) for old, new in pairs])


def protonet(model: nn.Module, tasks: Tasks, plan: Plan) -> None:
    """Prototypical networks (arXiv:1703.05175): distances to the means of the classes."""
    features, _ = _in_two(model)
    for support, targets, query, query_targets in tasks.each():
        known, asked = features(support), features(query)
        num_classes = int(targets.max()) + 1
        # Classes follow each other in a support set, so that their examples are rows of a block.
        means = known.view(num_classes, -1, known.shape[1]).mean(1)
        distances = (asked[:, None] - means).square().sum(2)
        (plan.loss(-distances, query_targets) / len(tasks.query)).backward()


def _in_two(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The features and the head of a module that is a sequence of these two."""
    features, head = model.children()
    return features, head


def _as_leaves(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().requires_grad_() for name, value in values.items()}


def _add(model: nn.Module, grads: Iterable[Tensor]) -> None:
    """Adds gradients to those of the parameters."""
    for value, grad in zip(model.parameters(), grads, strict=True):
        value.grad = grad if value.grad is None else value.grad + grad
