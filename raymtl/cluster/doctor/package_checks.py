"""What `raymtl doctor` looks at in this Python: its version, the packages, torch and the GPU."""

import platform
import shutil
import warnings
from collections.abc import Iterable
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from raymtl.cluster.doctor.check import INSTALL, Check, first_line, version
from raymtl.cluster.doctor.node_checks import PACKAGES, too_old


def versions() -> list[Check]:
    try:
        python = metadata.metadata("raymtl")["Requires-Python"]
        required = metadata.requires("raymtl") or []
    except metadata.PackageNotFoundError:
        return [
            Check("python", True, platform.python_version(), ""),
            Check(
                "packages",
                None,
                "raymtl is not installed, so nothing says what it needs",
                f"{INSTALL} .",
            ),
        ]
    return [_python(python), *_packages(required)]


def _python(required: str) -> Check:
    found = platform.python_version()
    ok = SpecifierSet(required).contains(found, prereleases=True)
    return Check("python", ok, found, f"Make a virtual environment with a Python {required}.")


def floors() -> Check:
    old = too_old({package: version(package) for package in PACKAGES})
    return Check(
        "security floor", not old, "; ".join(old) or "no version with a known hole", f"{INSTALL} ."
    )


def _packages(required: Iterable[str]) -> list[Check]:
    """One check for all requirements that are met, and one for each that is not."""
    met, checks = [], []
    for text in required:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        name, wanted = requirement.name, requirement.specifier
        found = version(name)
        if found and wanted.contains(found, prereleases=True):
            met.append(f"{name} {found}")
        else:
            advice = f"raymtl needs {name} {wanted}: {INSTALL} ."
            checks.append(Check(name, False, found or "not installed", advice))
    return [Check("packages", True, ", ".join(met) or "none", ""), *checks]


def gpu() -> Check:
    try:
        import torch
    except Exception as error:  # a library that is missing or of another build raises as it likes
        return Check(
            "torch", False, first_line(error), f"{INSTALL} --force-reinstall torch torchvision"
        )
    with warnings.catch_warnings():
        # torch says in a warning that the driver is too old; the advice below says so too.
        warnings.simplefilter("ignore")
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    if names:
        return Check("gpu", True, ", ".join(names), "")
    if shutil.which("nvidia-smi"):
        found = f"none for torch {torch.__version__}, though NVIDIA's tools are here"
        return Check(
            "gpu", None, found, "Look at nvidia-smi; take a CUDA build of torch, or a newer driver."
        )
    return Check("gpu", True, "none; torch computes on the CPU", "")


def torchvision_build() -> Check:
    try:
        import torchvision
    # RuntimeError for operators that torch does not know, OSError for libraries.
    except Exception as error:
        reason = "torchvision does not go with this torch"
        if "torchvision::" in str(error):
            reason = (
                "torchvision was built for another torch than this one (CPU and CUDA builds differ "
                "too)"
            )
        advice = f"{reason}. Install both together: {INSTALL} --force-reinstall torch torchvision"
        return Check("torchvision", False, first_line(error), advice)
    return Check("torchvision", True, f"{torchvision.__version__}, imports with torch", "")
