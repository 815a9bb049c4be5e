"""Names of weights: those of EfficientNet-PyTorch in timm's words, and what does not fit."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from raymtl.types import UserError

COUNTER = "num_batches_tracked"
"""The last part of an entry of batch norms that no value depends on."""

_TOP = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
_SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
_EXPANDING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
} | _SQUEEZE
_PLAIN = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
} | _SQUEEZE


def in_words_of_timm(entries: Mapping[str, Tensor], blocks: Sequence[int]) -> Mapping[str, Tensor]:
    """The entries of a file of EfficientNet-PyTorch by the names that timm's EfficientNet has.

    `blocks` is the number of blocks in each stage, through which that package counts on. Other
    entries keep their names.
    """
    if "_conv_stem.weight" not in entries:
        return entries
    places = [(stage, i) for stage, number in enumerate(blocks) for i in range(number)]
    renamed = {}
    for name, value in entries.items():
        part, *rest = name.split(".")
        if part == "_blocks" and int(rest[0]) < len(places):
            words = _PLAIN
            if f"_blocks.{rest[0]}._expand_conv.weight" in entries:
                words = _EXPANDING
            stage, i = places[int(rest[0])]
            name = ".".join(["blocks", f"{stage}.{i}", words.get(rest[1], rest[1]), *rest[2:]])
        elif part == "_fc":
            name = ".".join(["classifier", *rest])
        else:
            name = ".".join([_TOP.get(part, part), *rest])
        renamed[name] = value
    return renamed


def check_fit(
    source: str,
    entries: Mapping[str, Tensor],
    expected: Mapping[str, tuple[int, ...]],
    ignored: Sequence[str],
) -> None:
    """Raises UserError that names the first entry that is missing, unexpected or of another shape.

    Args:
        source: `encoder.weights`.
        entries: of the file.
        expected: names and shapes of the network's own.
        ignored: beginnings of the names of entries that may be there, those of the classifier.
    """
    for name, shape in expected.items():
        if name not in entries:
            raise _misfit(source, f"{name}: expected shape {list(shape)}, got no such entry")
        if tuple(entries[name].shape) != shape:
            got = list(entries[name].shape)
            hint = ""
            if "pos_embed" in name:
                hint = " Set encoder.size to the pixels a side that it was trained with."
            raise _misfit(source, f"{name}: expected shape {list(shape)}, got {got}", hint)
    for name in entries:
        known = name in expected or name.endswith(COUNTER) or name.startswith(tuple(ignored))
        if not known:
            got = list(entries[name].shape)
            raise _misfit(source, f"{name}: expected no such entry, got one of shape {got}")


def _misfit(source: str, what: str, hint: str = "") -> UserError:
    if not hint:
        hint = " Choose the encoder.model that these weights are of."
    return UserError(f"encoder.weights: {source}: {what}.{hint}")
