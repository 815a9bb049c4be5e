"""Where episodes come from; the union of sources is the registry."""

from raymtl.data.base import SPLITS, Arrays, Source, Split
from raymtl.data.digits import Digits

# A second source turns this into an Annotated union, discriminated by `name`, as the other registries are.
SourceSpec = Digits

__all__ = ["SPLITS", "Arrays", "Digits", "Source", "SourceSpec", "Split"]
