"""Clusters: is this one, or this machine, ready?"""

from raymtl.cluster.address import refusal, resolve
from raymtl.cluster.doctor.check import Check
from raymtl.cluster.doctor.doctor import doctor
from raymtl.cluster.doctor.node_probe import machines, survey

__all__ = ["Check", "doctor", "machines", "refusal", "resolve", "survey"]
