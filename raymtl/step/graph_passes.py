"""Shortens a traced graph: fewer calls at every replay, and the same numbers."""

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

aten = torch.ops.aten

REPEATS = (aten.detach.default, aten.alias.default, aten.lift_fresh_copy.default)
"""They return what equals their argument. A replayed graph is not differentiated, so nothing is
detached, and it changes nothing in place, so a constant needs no copy. Copies that the program
itself makes stay: it may change an argument before the backward pass."""

SHAPES = (aten.view.default, aten._unsafe_view.default, aten.expand.default)
"""They return their argument where it has the shape already."""

SWAPS = (aten.t.default, aten.transpose.int)
"""Two of the same undo each other."""

FILLED = {aten.ones_like.default: 1, aten.zeros_like.default: 0}
"""They depend on the shape of their argument alone."""

LARGEST_CONSTANT = 1 << 16
"""Elements of a tensor that is kept between replays; a larger one is made anew each time."""


def shortened(module: GraphModule) -> GraphModule:
    """Removes calls that change nothing, and computes once what is the same at every replay.

    The module is changed in place and returned. Its nodes must carry the tensors that the tracer
    saw, as `node.meta["val"]`.
    """
    constants: dict[Node, Tensor] = {}
    overwritten = _overwritten(module)
    for node in list(module.graph.nodes):
        if node in overwritten:
            continue  # it has to be made anew for every replay
        if node.op == "get_attr":
            _remember(module, node, constants)
        elif node.op == "call_function":
            _shorten(module, node, constants)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _overwritten(module: GraphModule) -> set[Node]:
    """The nodes that an operation changes in place, with all that they are made of."""
    overwritten: set[Node] = set()
    for node in reversed(module.graph.nodes):
        changes = isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable
        if changes or node in overwritten:
            overwritten.update(node.all_input_nodes)
    return overwritten


def _remember(module: GraphModule, node: Node, constants: dict[Node, Tensor]) -> None:
    value = module
    for name in str(node.target).split("."):
        value = getattr(value, name)
    if isinstance(value, Tensor):
        constants[node] = value


def _shorten(module: GraphModule, node: Node, constants: dict[Node, Tensor]) -> None:
    same = _same_value(node)
    if same is not None:
        node.replace_all_uses_with(same)
        module.graph.erase_node(node)
        return
    value = _constant_value(node, constants)
    if value is not None:
        _make_constant(module, node, value, constants)


def _same_value(node: Node) -> Node | None:
    """The node whose value this one repeats; None where it makes a value of its own."""
    source = node.args[0] if node.args else None
    if not isinstance(source, Node):
        return None
    if node.target in REPEATS:
        return source
    if node.target in SHAPES and _kind(source) == _kind(node):
        return source
    if node.target in SWAPS and _swapped(source) == _swapped(node):
        first = source.args[0]
        assert isinstance(first, Node)
        return first
    return None


def _swapped(node: Node) -> frozenset[int] | None:
    """The two dimensions that the node exchanges; None where it does something else."""
    if node.target == aten.t.default:
        return frozenset((0, 1))
    if node.target == aten.transpose.int:
        like, *dims = node.meta["val"], *node.args[1:]
        return frozenset(dim % like.ndim for dim in dims)
    return None


def _kind(node: Node) -> Any:
    """Equal for two nodes whose tensors have the same type, shape, place and layout."""
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device, value.stride()
    return node  # unknown, and equal to no other


def _constant_value(node: Node, constants: dict[Node, Tensor]) -> Tensor | None:
    """The tensor of a node that is the same at every replay; None where it may differ."""
    like = node.meta.get("val")
    if not isinstance(like, Tensor) or like.numel() > LARGEST_CONSTANT:
        return None
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return None
    if target in FILLED:
        return torch.full(like.shape, FILLED[target], dtype=like.dtype, device=like.device)
    if torch.Tag.nondeterministic_seeded in target.tags:
        return None
    if any(each not in constants for each in node.all_input_nodes):
        return None
    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), constants.__getitem__)
    value = target(*args, **kwargs)
    return value if isinstance(value, Tensor) else None


def _make_constant(
    module: GraphModule, node: Node, value: Tensor, constants: dict[Node, Tensor]
) -> None:
    """Puts a tensor that was made once in place of a node that makes it at every replay."""
    name = f"constant_{node.name}"
    module.register_buffer(name, value)
    with module.graph.inserting_before(node):
        constant = module.graph.get_attr(name)
    constant.meta = dict(node.meta)
    constants[constant] = value
    node.replace_all_uses_with(constant)
    module.graph.erase_node(node)
