"""MAML of a small multi-layer perceptron in JAX: all tasks by vmap, compiled by jit."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.loops import Plan, Tasks


def step(network: nn.Module, tasks: Tasks, plan: Plan) -> Callable[[], Any]:
    """The meta-gradient of the mean squared error, as a function of no arguments."""
    os.environ.setdefault(
        "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    )
    import jax

    jax.config.update("jax_enable_x64", True)  # for parity; float32 stays float32
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    params = [(_array(layer.weight), _array(layer.bias)) for layer in layers]
    arrays = [_array(each) for each in tasks]
    meta_gradient = jax.jit(jax.grad(_meta_loss(plan)))
    return lambda: jax.block_until_ready(meta_gradient(params, *arrays))


def gradient(network: nn.Module, tasks: Tasks, plan: Plan) -> list[Tensor]:
    """The meta-gradient as tensors, in the order of the parameters."""
    import numpy as np

    pairs = step(network, tasks, plan)()
    return [torch.from_numpy(np.array(each)) for pair in pairs for each in pair]


def _array(tensor: Tensor) -> Any:
    import jax.numpy as jnp

    return jnp.asarray(tensor.detach().cpu().numpy())


def _meta_loss(plan: Plan) -> Callable[..., Any]:
    """(parameters, tasks) -> the mean query loss after adapting to the support sets."""
    import jax

    def predict(params: Any, inputs: Any) -> Any:
        hidden = inputs
        for weight, bias in params[:-1]:
            hidden = jax.nn.relu(hidden @ weight.T + bias)
        weight, bias = params[-1]
        return hidden @ weight.T + bias

    def loss(params: Any, inputs: Any, targets: Any) -> Any:
        return ((predict(params, inputs) - targets) ** 2).mean()

    def task_loss(params: Any, support: Any, targets: Any, query: Any, query_targets: Any) -> Any:
        adapted = params
        for _ in range(plan.inner_steps):
            grads = jax.grad(loss)(adapted, support, targets)
            adapted = jax.tree.map(lambda p, g: p - plan.inner_lr * g, adapted, grads)
        return loss(adapted, query, query_targets)

    def meta_loss(params: Any, *tasks: Any) -> Any:
        return jax.vmap(task_loss, (None, 0, 0, 0, 0))(params, *tasks).mean()

    return meta_loss
