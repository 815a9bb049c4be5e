"""The doctor finds what is wrong with a machine or a cluster without falling ill."""

import platform
import socket
import sys
import tomllib
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import ray
from packaging.requirements import Requirement
from packaging.version import Version
from ray._private import ray_constants

from raymtl.cluster import capacity
from raymtl.cluster.address import endpoint
from raymtl.cluster.doctor import local_checks, node_checks, node_probe, package_checks
from raymtl.cluster.doctor.check import FLOORS, Check, version
from raymtl.cluster.doctor.doctor import doctor
from tests.conftest import experiment


def by_name(checks: list[Check]) -> dict[str, Check]:
    assert len({check.name for check in checks}) == len(checks)
    return {check.name: check for check in checks}


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("RAY_ADDRESS", "GLOO_SOCKET_IFNAME", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(key, raising=False)


def test_doctor_finds_nothing_wrong_here(tmp_path: Path) -> None:
    checks = by_name(doctor(tmp_path, None))
    assert [check for check in checks.values() if check.ok is False] == []
    assert all(check.advice for check in checks.values() if check.ok is None)
    assert {
        "python",
        "packages",
        "gpu",
        "torchvision",
        "cores",
        "memory",
        "/dev/shm",
        "output",
        "disk",
    } <= set(checks)
    assert "cluster" not in checks


def test_doctor_makes_no_output_folder(tmp_path: Path) -> None:
    assert by_name(doctor(tmp_path / "a" / "b", None))["output"].ok is True
    assert list(tmp_path.iterdir()) == []


def test_output_under_a_file_fails_with_advice(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check = by_name(doctor(tmp_path / "file" / "runs", None))["output"]
    assert check.ok is False
    assert "is a file" in check.found
    assert "output" in check.advice


@pytest.mark.parametrize("given", ["argument", "environment", "auto"])
def test_dead_address_is_a_failed_check(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead = "127.0.0.1:1"
    if given != "argument":
        monkeypatch.setenv("RAY_ADDRESS", dead)
    check = by_name(
        doctor(tmp_path, {"argument": dead, "environment": None, "auto": "auto"}[given])
    )["cluster"]
    assert check.ok is False
    assert dead in check.found
    assert "--address" in check.advice


def test_address_that_ray_rejects_is_a_failed_check(tmp_path: Path) -> None:
    check = by_name(doctor(tmp_path, "nonsense"))["cluster"]
    assert check.ok is False
    assert "nonsense" in check.found


def test_other_programs_cost_a_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_probe, "ANSWER_S", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as other:
        check = by_name(doctor(tmp_path, f"127.0.0.1:{other.getsockname()[1]}"))["cluster"]
    assert check.ok is False
    assert "no answer within 2 s" in check.found


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("10.0.0.1:6379", ("10.0.0.1", 6379)),
        ("ray://head:10001", ("head", 10001)),
        ("[::1]:6379", ("::1", 6379)),
        ("auto", None),
        ("head:many", None),
    ],
)
def test_endpoint_of_an_address(address: str, expected: tuple[str, int] | None) -> None:
    assert endpoint(address) == expected


@pytest.fixture(scope="module")
def here() -> Iterator[str]:
    """The address of a Ray on this machine."""
    mine = not ray.is_initialized()
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        log_to_driver=False,
        ignore_reinit_error=True,
    )
    yield ray.get_runtime_context().gcs_address
    if mine:
        ray.shutdown()


@pytest.mark.slow
def test_a_live_cluster_is_left_unchanged(here: str, tmp_path: Path) -> None:
    checks = by_name(doctor(tmp_path, here))
    for name in (
        "cluster",
        "nodes",
        "cluster's resources",
        "versions on the nodes",
        "shared output",
    ):
        assert checks[name].ok is True, checks[name]
    assert f"Ray {ray.__version__}" in checks["cluster"].found
    assert checks["nodes"].found.startswith("1 alive")
    assert list(tmp_path.iterdir()) == []


def test_object_store_figures_are_rays_own() -> None:
    assert local_checks.STORE_SHARE == ray_constants.DEFAULT_OBJECT_STORE_MEMORY_PROPORTION
    assert local_checks.STORE_MOST == ray_constants.DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES
    assert local_checks.STORE_LEAST_CAP == ray_constants.REQUIRE_SHM_SIZE_THRESHOLD


def test_requirements_that_are_not_met_are_named() -> None:
    torch = metadata.version("torch")
    required = ["torch>=2", "ray[tune]<1", "no-such-package>=3", 'absent>=1; extra == "test"']
    packages, ray_check, missing = package_checks._packages(required)
    assert packages == Check("packages", True, f"torch {torch}", "")
    assert (ray_check.name, ray_check.ok, ray_check.found) == ("ray", False, ray.__version__)
    assert "<1" in ray_check.advice
    assert (missing.name, missing.ok, missing.found) == ("no-such-package", False, "not installed")


def test_broken_torchvision_gets_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        """Stands in the way of `import torchvision`, as a build for another torch does."""

        def find_spec(self, name: str, path: object, target: object = None) -> None:
            if name == "torchvision":
                raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    check = package_checks.torchvision_build()
    assert check.ok is False
    assert check.found == "operator torchvision::nms does not exist"
    assert "another torch" in check.advice
    assert "torch torchvision" in check.advice


def test_small_shared_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def docker(path: str) -> Any:
        return type("Space", (), {"f_bavail": 16384, "f_frsize": 4096})

    monkeypatch.setattr("raymtl.cluster.doctor.local_checks.os.statvfs", docker)
    check = local_checks._shared_memory(16 * 2**30)
    assert check.ok is None
    assert "--shm-size=5.3g" in check.advice
    assert local_checks._shared_memory(0.1 * 2**30).ok is True


def test_loopback_hostname_matters_for_several_machines_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "raymtl.cluster.doctor.local_checks.socket.gethostbyname", lambda name: "127.0.1.1"
    )
    assert local_checks._hostname(None).ok is True
    assert local_checks._hostname("head:6379").ok is None
    assert "GLOO_SOCKET_IFNAME" in local_checks._hostname("head:6379").advice
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert local_checks._hostname("head:6379").ok is True
    assert local_checks._interface().ok is True
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-interface")
    assert local_checks._interface().ok is False


def test_token_that_others_can_read_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = tmp_path / "token"
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    assert local_checks._token("head:6379").ok is False
    token.write_text("secret")
    token.chmod(0o644)
    check = local_checks._token("head:6379")
    assert check.ok is None
    assert check.advice == f"chmod 600 {token}"
    token.chmod(0o600)
    assert local_checks._token("head:6379").ok is True
    assert "secret" not in str(local_checks._token("head:6379"))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert local_checks._token(None).ok is None


GOOD: Mapping[str, Any] = {
    "python": platform.python_version(),
    **{name: version(name) for name in ("raymtl", *node_checks.PACKAGES)},
    "sees": True,
    "writes": True,
    "token": True,
    "resolves": "10.0.0.5",
    "interfaces": ["lo", "eth0"],
    "gloo": "",
    "nccl": "",
    "disk_free": 50 * 2**30,
    "disk_share": 0.5,
}


def nodes_of(**changes: Any) -> dict[str, node_checks.NodeReport]:
    """Node a as it should be, and b with these changes."""
    return {"a": node_checks.NodeReport(GOOD), "b": node_checks.NodeReport({**GOOD, **changes})}


def test_nodes_as_they_should_be_pass_every_check(tmp_path: Path) -> None:
    for check in (
        node_checks.same_versions(nodes_of()),
        node_checks.floors(nodes_of()),
        node_checks.authentication(nodes_of()),
        node_checks.clocks(nodes_of()),
        node_checks.interfaces(nodes_of()),
        node_checks.disks(nodes_of()),
        node_checks.shared(tmp_path, nodes_of()),
        node_checks.alive(["a", "b"], [], 30),
        node_checks.resources({"CPU": 2}),
    ):
        assert check.ok is True, check


def test_nodes_that_differ_are_named(tmp_path: Path) -> None:
    """And those that do not share the storage."""
    other_build = f"{metadata.version('torch').partition('+')[0]}+cu128"
    assert node_checks.same_versions(nodes_of(torch=other_build)).ok is True
    old = node_checks.same_versions(nodes_of(ray="2.9.0"))
    assert old.ok is False
    assert old.found == f"b: ray 2.9.0, here {ray.__version__}"
    blind = node_checks.shared(tmp_path, nodes_of(sees=False, writes=False))
    assert blind.ok is False
    assert "not seen on b" in blind.found
    barred = node_checks.shared(tmp_path, nodes_of(writes=False))
    assert "read-only on b" in barred.found
    apart = node_checks.shared(
        tmp_path, nodes_of() | {"a": node_checks.NodeReport(GOOD, unread=["b"])}
    )
    assert apart.ok is False
    assert "is not read on a" in apart.found
    assert node_checks.alive(["a", "b"], ["b"], 30).ok is False
    assert node_checks.resources({"GPU": 0}).ok is None


@pytest.mark.parametrize(
    ("told", "ok", "found"),
    [
        (100.5, True, "none differs"),
        # Between the bounds of asking nothing is known for sure.
        (103.9, True, "none differs"),
        (98.1, True, "none differs"),
        (110.0, None, "b is 8 s ahead"),
        (80.0, None, "b is 20 s behind"),
    ],
)
def test_clock_is_off_where_asking_cannot_explain_it(
    told: float, ok: bool | None, found: str
) -> None:
    answers = {
        "a": node_checks.NodeReport(GOOD, 100.0, 101.0, 102.0),
        "b": node_checks.NodeReport(GOOD, 100.0, told, 102.0),
    }
    assert node_checks.clocks(answers)[1:3] == (
        ok,
        found if ok is None else "none differs by over 2 s",
    )


def test_only_nodes_still_silent_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three, one answers; Ray notices at the third look that the second is gone, and of the third never."""
    looks: list[int] = []

    def seen() -> list[dict[str, Any]]:
        looks.append(len(looks))
        return [
            {"NodeID": key, "Alive": key != "gone" or len(looks) < 3, "NodeManagerHostname": key,
             "NodeManagerAddress": "10.0.0.1", "Resources": {"CPU": 1.0}}
            for key in ("here", "gone", "mute")
        ]  # fmt: skip

    report = node_checks.NodeReport(dict.fromkeys((*node_checks.PACKAGES, "raymtl", "python")))
    monkeypatch.setattr(ray, "nodes", seen)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 3.0})
    monkeypatch.setattr(node_probe, "_reports", lambda node_ids, probe: {"here": report})
    monkeypatch.setattr("raymtl.cluster.doctor.node_probe.time.sleep", lambda seconds: None)
    for check in (
        "same_versions",
        "floors",
        "authentication",
        "clocks",
        "interfaces",
        "disks",
        "shared",
    ):
        monkeypatch.setattr(node_checks, check, lambda *_: Check("other", True, "", ""))
    told = node_probe.survey(tmp_path, notice_s=0.2)[0]
    assert told.ok is False
    assert "2 alive: here (10.0.0.1), mute (10.0.0.1)" in told.found
    assert "no answer within 30 s from mute" in told.found


def test_versions_with_known_holes_are_named() -> None:
    """Those installed have none."""
    check = node_checks.floors(nodes_of(ray="2.54.1", torch="2.5.1+cu121"))
    assert check.ok is False
    assert "b: ray 2.54.1 (CVE-2026-41486" in check.found
    assert "b: torch 2.5.1+cu121 (CVE-2025-32434" in check.found
    assert package_checks.floors().ok is True


def test_what_the_package_requires_has_no_known_hole() -> None:
    project = tomllib.loads((Path(__file__).parent.parent.parent / "pyproject.toml").read_text())[
        "project"
    ]
    required = {r.name.lower(): r.specifier for r in map(Requirement, project["dependencies"])}
    for package, (floor, hole) in FLOORS.items():
        least = next(Version(spec.version) for spec in required[package] if spec.operator == ">=")
        assert least >= Version(floor), f"{package}: {hole}"


def test_open_ray_and_full_disks_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert node_checks.authentication(nodes_of(token=False))[1:3] == (False, "not asked for on b")
    monkeypatch.setenv("RAYMTL_ALLOW_OPEN_CLUSTER", "1")
    assert node_checks.authentication(nodes_of(token=False)).ok is None
    assert node_checks.authentication(nodes_of(token=None)).ok is None
    assert node_checks.disks(nodes_of(disk_share=0.97))[1:3] == (None, "b: 97% full, 50.0 GiB free")


def test_interfaces_that_others_do_not_reach_are_told() -> None:
    loopback = node_checks.interfaces(nodes_of(resolves="127.0.1.1"))
    assert loopback.ok is None
    assert "b: its hostname is 127.0.1.1" in loopback.found
    assert node_checks.interfaces(nodes_of(resolves="127.0.1.1", gloo="eth0")).ok is True
    assert (
        node_checks.interfaces({"a": node_checks.NodeReport({**GOOD, "resolves": "127.0.1.1"})}).ok
        is True
    )
    assert node_checks.interfaces(nodes_of(gloo="eth7")).ok is False
    assert node_checks.interfaces(nodes_of(nccl="eth")).ok is True
    assert node_checks.interfaces(nodes_of(nccl="^docker,lo")).ok is True


def test_pickles_in_parquet_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert local_checks._parquet().ok is True
    monkeypatch.setenv("RAY_DATA_AUTOLOAD_CLOUDPICKLE_TENSOR_METADATA", "1")
    assert local_checks._parquet().ok is False


def test_doctor_tells_whether_the_plan_has_room(tmp_path: Path) -> None:
    fits, too_wide = (
        experiment(train__workers=1),
        experiment(train__workers=512, train__meta_batch=512),
    )
    assert by_name(doctor(tmp_path, None, fits))["room for the plan"].ok is True
    check = by_name(doctor(tmp_path, None, too_wide))["room for the plan"]
    assert check.ok is False
    assert check.found.startswith("train.workers: ")
    assert "room for the plan" not in by_name(doctor(tmp_path, None))
    assert (
        capacity.check(
            too_wide.override({"train.wait_for_nodes_s": 60}), capacity.Capacity([{"CPU": 1.0}])
        ).ok
        is None
    )
