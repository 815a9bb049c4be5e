"""The cluster files hold what Ray's schema does not ask for, and the doctor finds what is wrong without falling ill."""

import inspect
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray._private import ray_constants
from ray.autoscaler._private import commands, util

from raymtl import cluster
from raymtl.cluster import Check, doctor

ROOT = Path(__file__).parent.parent
AWS, LOCAL = ROOT / "cluster.yaml", ROOT / "clusters" / "local.yaml"
FILES = pytest.mark.parametrize("path", [AWS, LOCAL], ids=lambda path: path.stem)

# The schema accepts any key under `provider` and `node_config`, so that a mistyped one would be ignored in silence.
PROVIDER_KEYS = {
    "aws": {"type", "region", "availability_zone", "use_internal_ips", "use_external_head_ip", "cache_stopped_nodes"},
    "local": {"type", "head_ip", "worker_ips"},
}
NODE_KEYS = {
    "InstanceType", "ImageId", "KeyName", "SubnetIds", "SecurityGroupIds", "IamInstanceProfile", "MetadataOptions",
    "BlockDeviceMappings", "InstanceMarketOptions",
}  # fmt: skip
PLACEHOLDER = re.compile(r"REPLACE_WITH_[A-Z_]+")


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text())
    return content


def filled(path: Path) -> dict[str, Any]:
    """The file as `ray up` sees it, with Ray's defaults."""
    config: dict[str, Any] = util.prepare_config(read(path))
    return config


@FILES
def test_ray_accepts_the_file(path: Path) -> None:
    config = filled(path)
    assert util.validate_config(config) is None
    with pytest.raises(Exception, match="max_workerz"):
        util.validate_config({**config, "max_workerz": 1})


@FILES
def test_every_key_is_one_that_ray_reads(path: Path) -> None:
    config = read(path)
    assert set(config["provider"]) <= PROVIDER_KEYS[config["provider"]["type"]]
    # Not in Ray's schema, though its code reads it.
    assert '"use_external_head_ip"' in inspect.getsource(commands)
    for node in config.get("available_node_types", {}).values():
        assert set(node["node_config"]) <= NODE_KEYS


@FILES
def test_worker_numbers_fit(path: Path) -> None:
    config = filled(path)
    for node in config["available_node_types"].values():
        assert 0 <= node["min_workers"] <= node["max_workers"] <= config["max_workers"]


@FILES
def test_ray_never_starts_without_the_token(path: Path) -> None:
    config = read(path)
    settings = next(command for command in config["setup_commands"] if command.startswith("printf 'export %s"))
    assert settings.endswith("> ~/raymtl.env")
    assert "RAY_AUTH_MODE=token" in settings
    assert "RAY_USAGE_STATS_ENABLED=0" in settings
    (token,) = re.findall(r"RAY_AUTH_TOKEN_PATH=\$HOME/(\S+)'", settings)
    assert f"~/{token}" in config["file_mounts"]
    for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        assert command.startswith(". ~/raymtl.env || exit 1;")


@FILES
def test_settings_command_writes_a_file_that_exports_the_token(path: Path, tmp_path: Path) -> None:
    command = next(command for command in read(path)["setup_commands"] if command.startswith("printf 'export %s"))
    shell = f'{command} && . ~/raymtl.env && echo "$RAY_AUTH_MODE $RAY_AUTH_TOKEN_PATH $RAY_USAGE_STATS_ENABLED"'
    home = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", shell], env=home, capture_output=True, text=True, check=True)
    assert done.stdout == f"token {tmp_path}/.ray/raymtl_token 0\n"


@FILES
def test_dashboard_is_on_loopback(path: Path) -> None:
    starts = [command for command in read(path)["head_start_ray_commands"] if "ray start" in command]
    assert len(starts) == 1
    assert "--dashboard-host=127.0.0.1" in starts[0].split()
    assert "0.0.0.0" not in starts[0]


@FILES
def test_every_placeholder_is_explained(path: Path) -> None:
    lines = path.read_text().splitlines()
    used = [number for number, line in enumerate(lines) if PLACEHOLDER.search(line.partition("#")[0])]
    assert used
    for number in used:
        # A folded command is one value: its explanation stands before its first line.
        start = number
        while not re.match(r"\s*(- |\S+:(\s|$))", lines[start]):
            start -= 1
        explained = "# " in lines[number] or lines[start - 1].lstrip().startswith("# ")
        assert explained, f"{path.name}:{number + 1}: {lines[number].strip()}"


@FILES
def test_mounted_parts_are_those_that_an_installation_needs(path: Path) -> None:
    mounted = set(read(path)["file_mounts"].values()) - {"~/.ray/raymtl_token"}
    assert {"pyproject.toml", "constraints.txt", "README.md", "LICENSE", "raymtl"} <= mounted
    for source in mounted:
        assert not Path(source).is_absolute()
        assert (ROOT / source).exists(), f"`ray up` would stop: {source} is not in the checkout"


def test_aws_needs_a_region() -> None:
    assert read(AWS)["provider"]["region"]


def test_aws_head_runs_no_trials() -> None:
    config = read(AWS)
    assert config["available_node_types"][config["head_node_type"]]["resources"] == {"CPU": 0, "GPU": 0}


def test_aws_workers_are_spot_and_start_at_none() -> None:
    worker = read(AWS)["available_node_types"]["worker"]
    assert worker["min_workers"] == 0
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}


def test_aws_demands_imdsv2_and_encrypts_disks() -> None:
    for node in read(AWS)["available_node_types"].values():
        assert node["node_config"]["MetadataOptions"]["HttpTokens"] == "required"
        disks = node["node_config"]["BlockDeviceMappings"]
        assert disks
        assert all(disk["Ebs"]["Encrypted"] is True for disk in disks)


def test_aws_leaves_no_group_role_or_address_to_ray() -> None:
    config = read(AWS)
    # Ray opens port 22 of a security group that it makes to the world, and lets a head without a profile do all in EC2.
    assert "security_group" not in config["provider"]
    assert config["provider"]["use_internal_ips"] is True
    head, worker = (config["available_node_types"][kind]["node_config"] for kind in ("head", "worker"))
    assert head["SubnetIds"]
    assert worker["SubnetIds"]
    assert "IamInstanceProfile" in head
    # The head has one group more: the one that lets SSH in.
    assert len(set(head["SecurityGroupIds"]) - set(worker["SecurityGroupIds"])) == 1
    assert set(worker["SecurityGroupIds"]) < set(head["SecurityGroupIds"])


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
    assert {"python", "packages", "gpu", "torchvision", "cores", "memory", "/dev/shm", "output", "disk"} <= set(checks)
    assert "cluster" not in checks


def test_output_that_is_not_there_yet_is_not_made(tmp_path: Path) -> None:
    assert by_name(doctor(tmp_path / "a" / "b", None))["output"].ok is True
    assert list(tmp_path.iterdir()) == []


def test_output_under_a_file_fails_with_advice(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check = by_name(doctor(tmp_path / "file" / "runs", None))["output"]
    assert check.ok is False
    assert "is a file" in check.found
    assert "output" in check.advice


@pytest.mark.parametrize("given", ["argument", "environment", "auto"])
def test_dead_address_is_a_failed_check(given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dead = "127.0.0.1:1"
    if given != "argument":
        monkeypatch.setenv("RAY_ADDRESS", dead)
    started = time.monotonic()
    check = by_name(doctor(tmp_path, {"argument": dead, "environment": None, "auto": "auto"}[given]))["cluster"]
    assert check.ok is False
    assert dead in check.found
    assert "--address" in check.advice
    assert time.monotonic() - started < 10


def test_address_that_ray_rejects_is_a_failed_check(tmp_path: Path) -> None:
    check = by_name(doctor(tmp_path, "nonsense"))["cluster"]
    assert check.ok is False
    assert "nonsense" in check.found


def test_program_that_is_not_ray_costs_a_bounded_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "ANSWER_S", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as other:
        started = time.monotonic()
        check = by_name(doctor(tmp_path, f"127.0.0.1:{other.getsockname()[1]}"))["cluster"]
    assert check.ok is False
    assert "no answer within 2 s" in check.found
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("address", "endpoint"),
    [
        ("10.0.0.1:6379", ("10.0.0.1", 6379)),
        ("ray://head:10001", ("head", 10001)),
        ("[::1]:6379", ("::1", 6379)),
        ("auto", None),
        ("head:many", None),
    ],
)
def test_endpoint_of_an_address(address: str, endpoint: tuple[str, int] | None) -> None:
    assert cluster._endpoint(address) == endpoint


@pytest.fixture(scope="module")
def here() -> Iterator[str]:
    """The address of a Ray on this machine."""
    mine = not ray.is_initialized()
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, ignore_reinit_error=True)
    yield ray.get_runtime_context().gcs_address
    if mine:
        ray.shutdown()


def test_live_cluster_is_examined_and_left_as_it_was(here: str, tmp_path: Path) -> None:
    checks = by_name(doctor(tmp_path, here))
    for name in ("cluster", "nodes", "cluster's resources", "versions on the nodes", "shared output"):
        assert checks[name].ok is True, checks[name]
    assert f"Ray {ray.__version__}" in checks["cluster"].found
    assert checks["nodes"].found.startswith("1 alive")
    assert list(tmp_path.iterdir()) == []


def test_object_store_figures_are_rays_own() -> None:
    assert cluster.STORE_SHARE == ray_constants.DEFAULT_OBJECT_STORE_MEMORY_PROPORTION
    assert cluster.STORE_MOST == ray_constants.DEFAULT_OBJECT_STORE_MAX_MEMORY_BYTES
    assert cluster.STORE_LEAST_CAP == ray_constants.REQUIRE_SHM_SIZE_THRESHOLD


def test_requirements_that_are_not_met_are_named() -> None:
    torch = metadata.version("torch")
    required = ["torch>=2", "ray[tune]<1", "no-such-package>=3", 'absent>=1; extra == "test"']
    packages, ray_check, missing = cluster._packages(required)
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
    check = cluster._torchvision()
    assert check.ok is False
    assert check.found == "operator torchvision::nms does not exist"
    assert "another torch" in check.advice
    assert "torch torchvision" in check.advice


def test_small_shared_memory_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    def docker(path: str) -> Any:
        return type("Space", (), {"f_bavail": 16384, "f_frsize": 4096})

    monkeypatch.setattr(cluster.os, "statvfs", docker)
    check = cluster._shared_memory(16 * 2**30)
    assert check.ok is None
    assert "--shm-size=5.3g" in check.advice
    assert cluster._shared_memory(0.1 * 2**30).ok is True


def test_loopback_hostname_matters_for_several_machines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.socket, "gethostbyname", lambda name: "127.0.1.1")
    assert cluster._hostname(None).ok is True
    assert cluster._hostname("head:6379").ok is None
    assert "GLOO_SOCKET_IFNAME" in cluster._hostname("head:6379").advice
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert cluster._hostname("head:6379").ok is True
    assert cluster._interface().ok is True
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-interface")
    assert cluster._interface().ok is False


def test_token_that_others_can_read_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "token"
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    assert cluster._token("head:6379").ok is False
    token.write_text("secret")
    token.chmod(0o644)
    check = cluster._token("head:6379")
    assert check.ok is None
    assert check.advice == f"chmod 600 {token}"
    token.chmod(0o600)
    assert cluster._token("head:6379").ok is True
    assert "secret" not in str(cluster._token("head:6379"))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert cluster._token(None).ok is None


def test_nodes_that_differ_or_do_not_share_are_named(tmp_path: Path) -> None:
    same: Mapping[str, Any] = {
        "python": cluster.platform.python_version(),
        **{name: cluster._version(name) for name in ("raymtl", "ray", "torch")},
        "sees": True,
        "writes": True,
    }
    other_build = {**same, "torch": f"{metadata.version('torch').partition('+')[0]}+cu128"}
    assert cluster._same({"a": same, "b": other_build}).ok is True
    assert cluster._shared(tmp_path, {"a": same, "b": same}).ok is True
    old = cluster._same({"a": same, "b": {**same, "ray": "2.9.0"}})
    assert old.ok is False
    assert old.found == f"b: ray 2.9.0, here {ray.__version__}"
    blind = cluster._shared(tmp_path, {"a": same, "b": {**same, "sees": False, "writes": False}})
    assert blind.ok is False
    assert "not seen on b" in blind.found
    barred = cluster._shared(tmp_path, {"a": same, "b": {**same, "writes": False}})
    assert "read-only on b" in barred.found
    assert cluster._alive(["a", "b"], ["b"]).ok is False
    assert cluster._resources({"GPU": 0}).ok is None
