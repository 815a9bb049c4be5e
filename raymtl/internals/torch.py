"""The private names of torch that the package uses, tested with torch 2.14.

Some tell whether torch.func transforms what runs. Without them everything runs as inside a
transform: right in either case, but slower in a plain loop. Others trace and compile graphs.
Without them steps run without graphs, which `raymtl.step.traced` says. `eager_optimizer` and
`spare_dynamo` keep torch._dynamo from being imported; without them training starts 2 s later.
"""

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from inspect import unwrap
from typing import Any

import torch
from torch import Tensor

try:
    from torch._C._functorch import TransformType, get_interpreter_stack
except ImportError:  # a torch that has moved them
    get_interpreter_stack = None  # type: ignore[assignment] # None is asked for below


def eager_optimizer(
    kind: type[torch.optim.Optimizer], groups: Sequence[dict[str, Any]], **settings: Any
) -> torch.optim.Optimizer:
    """An optimiser of this kind that torch.compile is never applied to.

    torch decorates the methods of its optimisers for torch.compile. The decorators import
    torch._dynamo, which takes each process about 2 s, and do nothing else here.
    """

    class Eager(kind):  # type: ignore[misc, valid-type]
        add_param_group = unwrap(kind.add_param_group)
        load_state_dict = unwrap(kind.load_state_dict)
        state_dict = unwrap(kind.state_dict)
        zero_grad = unwrap(kind.zero_grad)
        step = torch.no_grad()(unwrap(kind.step))

    return Eager(groups, **settings)


def spare_dynamo() -> None:
    """Lets torch.func.grad compute without importing torch._dynamo, which takes a process 2 s.

    torch imports it only in order to turn its compiled autograd off, which cannot be on before the
    import. Once something else has imported it, torch's own function is called.
    """
    from torch._functorch import eager_transforms

    original = getattr(eager_transforms, "_autograd_grad", None)
    if original is None or original is _gradients:
        return
    _ORIGINAL.append(original)
    eager_transforms._autograd_grad = _gradients


_ORIGINAL: list[Callable[..., Any]] = []
"""torch's own function in the place of `_gradients`."""


def _gradients(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    grad_outputs: Sequence[Tensor] | None = None,
    retain_graph: bool = False,
    create_graph: bool = True,
) -> tuple[Tensor, ...]:
    """The gradients of the outputs; 0 for an input on which none of them depends."""
    if "torch._dynamo" in sys.modules:
        result: tuple[Tensor, ...] = _ORIGINAL[0](
            outputs, inputs, grad_outputs, retain_graph, create_graph
        )
        return result
    followed = [i for i, output in enumerate(outputs) if output.requires_grad]
    if not followed:
        return tuple(torch.zeros_like(value) for value in inputs)
    weights = None
    if grad_outputs is not None:
        weights = [grad_outputs[i] for i in followed]
    gradients = torch.autograd.grad(
        [outputs[i] for i in followed],
        inputs,
        weights,
        retain_graph=retain_graph,
        create_graph=create_graph,
        allow_unused=True,
    )
    return tuple(
        torch.zeros_like(value) if gradient is None else gradient
        for value, gradient in zip(inputs, gradients, strict=True)
    )


def is_transformed() -> bool:
    """Whether this runs inside of a transform of torch.func, such as vmap or grad."""
    return get_interpreter_stack is None or bool(get_interpreter_stack())


def is_vmapped() -> bool:
    """Whether this runs inside of torch.func.vmap, at any depth."""
    if get_interpreter_stack is None:
        return True
    return any(level.key() == TransformType.Vmap for level in get_interpreter_stack() or ())


def traced_call(function: Callable[..., Any], *arguments: Any) -> Any:
    """The first call of a compiled function, which traces it.

    Tensors that the function holds itself, such as buffers, become constants of the graph. Its
    backward pass may be run several times, so no buffer of the forward pass is handed over to it.
    """
    from torch._functorch import config

    with config.patch(donated_buffer=False), described_once():
        return function(*arguments)


def described_once() -> AbstractContextManager[Any]:
    """Within it a tracer describes all tensors in one mode. Else it makes one for each of them,
    which takes half of the time of tracing.
    """
    from torch._guards import TracingContext, tracing
    from torch._subclasses.fake_tensor import FakeTensorMode

    context: AbstractContextManager[Any] = tracing(
        TracingContext(FakeTensorMode(allow_non_fake_inputs=True))
    )
    return context


def inductor_graph(function: Callable[..., Any]) -> Any:
    """A function that traces `function` and its gradient at its first call, and compiles both.

    It is compiled for the shapes of that call by inductor. The result is differentiable once.
    """
    from torch._functorch.aot_autograd import aot_function
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table

    def backward(gm: Any, example_inputs: Sequence[Any]) -> Any:
        return compile_fx_inner(gm, example_inputs, is_backward=True)

    return aot_function(
        function,
        fw_compiler=compile_fx_inner,
        bw_compiler=backward,
        decompositions=select_decomp_table(),
    )
