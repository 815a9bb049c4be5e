"""How networks of timm and torchvision are divided into stages.

A recipe names the children of a network in the order in which they follow each other. A tuple of
names is one stage. A name alone is a child whose own children are stages, one each. What stands in
`end` comes after the last stage, in it, and `head` after that where features are pooled.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from torch import nn

from raymtl.encoders.pretrained.parts import TokenMaps, TokensIn, TokensOut, View
from raymtl.internals.timm import token_embedding


class Recipe(NamedTuple):
    """The children of a class of networks, as the module says it."""

    groups: tuple[tuple[str, ...] | str, ...]
    end: tuple[str, ...] = ()
    head: tuple[str, ...] = ()


_LAYERS = (("layer1",), ("layer2",), ("layer3",), ("layer4",))
TIMM = {
    "ConvNeXt": Recipe((("stem",), "stages"), ("norm_pre",), ("head",)),
    "EfficientNet": Recipe(
        (("conv_stem", "bn1"), "blocks"), ("conv_head", "bn2"), ("global_pool",)
    ),
    "MobileNetV3": Recipe(
        (("conv_stem", "bn1"), "blocks"),
        (),
        ("global_pool", "conv_head", "norm_head", "act2", "flatten"),
    ),
    "RegNet": Recipe((("stem",), ("s1",), ("s2",), ("s3",), ("s4",)), ("final_conv",), ("head",)),
    "ResNet": Recipe((("conv1", "bn1", "act1", "maxpool"), *_LAYERS), (), ("global_pool",)),
}
"""By the class of the network in timm, whose classifier was taken away."""

TORCHVISION = {
    "ConvNeXt": Recipe(("features",), (), ("avgpool", "classifier")),
    "EfficientNet": Recipe(("features",), (), ("avgpool", "flatten", "classifier")),
    "MobileNetV2": Recipe(("features",), (), ("avgpool", "flatten", "classifier")),
    "MobileNetV3": Recipe(("features",), (), ("avgpool", "flatten", "classifier")),
    "RegNet": Recipe((("stem",), "trunk_output"), (), ("avgpool",)),
    "ResNet": Recipe((("conv1", "bn1", "relu", "maxpool"), *_LAYERS), (), ("avgpool",)),
}
"""By the class of the network in torchvision. A pooling or flattening that the network makes by a
function is added by `MISSING`.
"""

MISSING: dict[str, Callable[[], nn.Module]] = {
    "avgpool": lambda: nn.AdaptiveAvgPool2d(1),
    "flatten": lambda: nn.Flatten(1),
}


def divide(
    network: nn.Module, recipes: dict[str, Recipe], pooled: bool
) -> list[list[tuple[str, nn.Module]]] | None:
    """The stages of a network, each a list of named modules; None if it is not known how to divide
    it.
    """
    name = type(network).__name__
    if recipes is TIMM and name == "VisionTransformer":
        return _divide_transformer(network, pooled)
    if name not in recipes:
        return None
    recipe = recipes[name]
    stages: list[list[tuple[str, nn.Module]]] = []
    for group in recipe.groups:
        if isinstance(group, str):
            children = getattr(network, group).named_children()
            stages += [[(f"{group}_{key}", child)] for key, child in children]
        else:
            stages.append(_children(network, group))
    stages[-1] += _children(network, recipe.end)
    if pooled:
        stages[-1] += _children(network, recipe.head)
    return stages


def _children(network: nn.Module, names: Iterable[str]) -> list[tuple[str, nn.Module]]:
    """The named children; without those that say nothing, such as a final convolution of none."""
    children = []
    for name in names:
        child = getattr(network, name, None)
        if not isinstance(child, nn.Module):
            child = MISSING[name]()
        if type(child) is not nn.Identity:
            children.append((name, child))
    return children


def _divide_transformer(network: Any, pooled: bool) -> list[list[tuple[str, nn.Module]]] | None:
    """The embedding of patches is the first stage and each block one more; between them tokens are
    maps of one column.
    """
    embed = token_embedding(type(network))
    if embed is None:
        return None
    height, width = network.patch_embed.grid_size
    names = [name for name in ("cls_token", "reg_token", "pos_embed") if _has(network, name)]
    stages: list[list[tuple[str, nn.Module]]] = [
        [
            ("patch_embed", network.patch_embed),
            ("tokens", View(network, names, embed)),
            *_children(network, ("norm_pre",)),
            ("out", TokensOut()),
        ]
    ]
    for name, block in network.blocks.named_children():
        stages.append([("in", TokensIn()), (f"blocks_{name}", block), ("out", TokensOut())])
    stages[-1][-1:] = _children(network, ("norm",))
    if pooled:
        pool = [name for name in ("attn_pool",) if _has(network, name)]
        stages[-1].append(("pool", View(network, pool, type(network).pool)))
        stages[-1] += _children(network, ("fc_norm",))
    else:
        stages[-1].append(("maps", TokenMaps(height, width)))
    return stages


def _has(network: nn.Module, name: str) -> bool:
    return getattr(network, name, None) is not None


def is_whole(network: nn.Module, stages: Sequence[nn.Module]) -> bool:
    """Whether the stages have all parameters of the network."""
    own = {id(value) for stage in stages for value in stage.parameters()}
    return all(id(value) in own for value in network.parameters())
