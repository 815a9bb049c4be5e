"""Clusters: is this one, or this machine, ready?"""

from raymtl.cluster.address import refusal, resolve
from raymtl.cluster.checks import Check
from raymtl.cluster.examine import doctor
from raymtl.cluster.nodes import machines, survey

__all__ = ["Check", "doctor", "machines", "refusal", "resolve", "survey"]
