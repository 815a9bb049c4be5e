"""The private names of torch that the package uses, tested with torch 2.14.

They tell whether torch.func transforms what runs. Without them everything runs as inside a
transform: right in either case, but slower in a plain loop.
"""

try:
    from torch._C._functorch import TransformType, get_interpreter_stack
except ImportError:  # a torch that has moved them
    get_interpreter_stack = None  # type: ignore[assignment]


def is_transformed() -> bool:
    """Whether this runs inside of a transform of torch.func, such as vmap or grad."""
    return get_interpreter_stack is None or bool(get_interpreter_stack())


def is_vmapped() -> bool:
    """Whether this runs inside of torch.func.vmap, at any depth."""
    if get_interpreter_stack is None:
        return True
    return any(level.key() == TransformType.Vmap for level in get_interpreter_stack() or ())
