"""Clusters: is this one, or this machine, ready?"""

from raymtl.cluster.address import refusal, resolve
from raymtl.cluster.checks import Check
from raymtl.cluster.examine import doctor
from raymtl.cluster.nodes import survey

__all__ = ["Check", "doctor", "refusal", "resolve", "survey"]
