"""The private names of torch that the package uses, tested with torch 2.14.

Some tell whether torch.func transforms what runs. Without them everything runs as inside a
transform: right in either case, but slower in a plain loop. The others trace and compile graphs.
Without them steps run without graphs, which `raymtl.step.traced` says.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from torch.fx import GraphModule

try:
    from torch._C._functorch import TransformType, get_interpreter_stack
except ImportError:  # a torch that has moved them
    get_interpreter_stack = None  # type: ignore[assignment] # None is asked for below


def is_transformed() -> bool:
    """Whether this runs inside of a transform of torch.func, such as vmap or grad."""
    return get_interpreter_stack is None or bool(get_interpreter_stack())


def is_vmapped() -> bool:
    """Whether this runs inside of torch.func.vmap, at any depth."""
    if get_interpreter_stack is None:
        return True
    return any(level.key() == TransformType.Vmap for level in get_interpreter_stack() or ())


def joint_graph(function: Callable[..., Any], simplify: Callable[[GraphModule], Any]) -> Any:
    """A function that traces `function` and its gradient at its first call, for those shapes.

    `simplify` may change the two graphs. The result is differentiable once.
    """
    from torch._functorch.aot_autograd import (  # type: ignore[attr-defined] # not in its __all__
        aot_function,
        make_boxed_func,
    )

    def replayed(gm: GraphModule, example_inputs: Sequence[Any]) -> Any:
        simplify(gm)
        return make_boxed_func(gm.forward)  # takes its arguments as one list, as the caller does

    return aot_function(function, fw_compiler=replayed, bw_compiler=replayed)


def traced_call(function: Callable[..., Any], *arguments: Any) -> Any:
    """The first call of a joint graph, which traces it.

    Tensors that the function holds itself, such as buffers, become constants of the graph. Its
    backward pass may be run several times, so no buffer of the forward pass is handed over to it.
    """
    from torch._functorch import config
    from torch._guards import TracingContext, tracing
    from torch._subclasses.fake_tensor import FakeTensorMode

    context = TracingContext(FakeTensorMode(allow_non_fake_inputs=True))
    with config.patch(donated_buffer=False), tracing(context):
        return function(*arguments)


def inductor_graph(function: Callable[..., Any]) -> Any:
    """As `joint_graph`, but with both graphs compiled by inductor."""
    from torch._functorch.aot_autograd import aot_function
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table

    def backward(gm: GraphModule, example_inputs: Sequence[Any]) -> Any:
        return compile_fx_inner(gm, example_inputs, is_backward=True)

    return aot_function(
        function,
        fw_compiler=compile_fx_inner,
        bw_compiler=backward,
        decompositions=select_decomp_table(),
    )


def outside_of_tracing() -> AbstractContextManager[None]:
    """Within it operations compute real tensors, also while a graph is being traced."""
    from torch.utils._python_dispatch import _disable_current_modes

    context: AbstractContextManager[None] = _disable_current_modes()
    return context
