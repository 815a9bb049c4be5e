"""The cluster files hold what Ray's schema does not ask for."""

import inspect
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private import commands, util

ROOT = Path(__file__).parent.parent.parent
AWS, GCP, LOCAL = (
    ROOT / "cluster.yaml",
    ROOT / "clusters" / "gcp.yaml",
    ROOT / "clusters" / "local.yaml",
)
KUBERAY = ROOT / "clusters" / "kuberay-rayjob.yaml"
FILES = pytest.mark.parametrize("path", [AWS, GCP, LOCAL], ids=lambda path: path.stem)

# The schema accepts any key under `provider` and `node_config`, so that a mistyped one would be ignored in silence.
PROVIDER_KEYS = {
    "aws": {"type", "region", "availability_zone", "use_internal_ips", "use_external_head_ip", "cache_stopped_nodes"},
    "gcp": {
        "type", "region", "availability_zone", "project_id", "use_internal_ips", "use_external_head_ip",
        "cache_stopped_nodes",
    },
    "local": {"type", "head_ip", "worker_ips"},
}  # fmt: skip
NODE_KEYS = {
    "InstanceType", "ImageId", "KeyName", "SubnetIds", "SecurityGroupIds", "IamInstanceProfile", "MetadataOptions",
    "BlockDeviceMappings", "InstanceMarketOptions",
    "machineType", "tags", "disks", "networkInterfaces", "serviceAccounts", "metadata", "shieldedInstanceConfig",
    "scheduling",
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
    util.validate_config(config)
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
    settings = next(
        command for command in config["setup_commands"] if command.startswith("printf 'export %s")
    )
    assert settings.endswith("> ~/raymtl.env")
    assert "RAY_AUTH_MODE=token" in settings
    assert "RAY_USAGE_STATS_ENABLED=0" in settings
    (token,) = re.findall(r"RAY_AUTH_TOKEN_PATH=\$HOME/(\S+)'", settings)
    assert f"~/{token}" in config["file_mounts"]
    for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        assert command.startswith(". ~/raymtl.env || exit 1;")


@FILES
def test_the_settings_command_exports_the_token(path: Path, tmp_path: Path) -> None:
    command = next(
        command
        for command in read(path)["setup_commands"]
        if command.startswith("printf 'export %s")
    )
    shell = f'{command} && . ~/raymtl.env && echo "$RAY_AUTH_MODE $RAY_AUTH_TOKEN_PATH $RAY_USAGE_STATS_ENABLED"'
    home = {"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", "-c", shell], env=home, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"token {tmp_path}/.ray/raymtl_token 0\n"


@FILES
def test_dashboard_is_on_loopback(path: Path) -> None:
    starts = [
        command for command in read(path)["head_start_ray_commands"] if "ray start" in command
    ]
    assert len(starts) == 1
    assert "--dashboard-host=127.0.0.1" in starts[0].split()
    assert "0.0.0.0" not in starts[0]


@pytest.mark.parametrize("path", [AWS, GCP, LOCAL, KUBERAY], ids=lambda path: path.stem)
def test_every_placeholder_is_explained(path: Path) -> None:
    lines = path.read_text().splitlines()
    used = [
        number for number, line in enumerate(lines) if PLACEHOLDER.search(line.partition("#")[0])
    ]
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


@pytest.mark.parametrize("path", [AWS, GCP], ids=lambda path: path.stem)
def test_head_in_a_cloud_runs_no_trials(path: Path) -> None:
    config = read(path)
    assert config["available_node_types"][config["head_node_type"]]["resources"] == {
        "CPU": 0,
        "GPU": 0,
    }


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


def test_aws_leaves_nothing_to_rays_defaults() -> None:
    """No group, role or address."""
    config = read(AWS)
    # Ray opens port 22 of a security group that it makes to the world, and lets a head without a profile do all in EC2.
    assert "security_group" not in config["provider"]
    assert config["provider"]["use_internal_ips"] is True
    head, worker = (
        config["available_node_types"][kind]["node_config"] for kind in ("head", "worker")
    )
    assert head["SubnetIds"]
    assert worker["SubnetIds"]
    assert "IamInstanceProfile" in head
    # The head has one group more: the one that lets SSH in.
    assert len(set(head["SecurityGroupIds"]) - set(worker["SecurityGroupIds"])) == 1
    assert set(worker["SecurityGroupIds"]) < set(head["SecurityGroupIds"])


def test_gcp_workers_are_spot_and_start_at_none() -> None:
    worker = read(GCP)["available_node_types"]["worker"]
    assert worker["min_workers"] == 0
    # With a GPU a machine cannot be moved: Google refuses it otherwise.
    assert (
        worker["node_config"]["scheduling"]
        | {"provisioningModel": "SPOT", "onHostMaintenance": "TERMINATE"}
        == (worker["node_config"]["scheduling"])
    )


def test_gcp_leaves_nothing_to_defaults() -> None:
    """No address, role or key, to Google or to Ray."""
    config = read(GCP)
    assert config["provider"]["use_internal_ips"] is True
    head, worker = (
        config["available_node_types"][kind]["node_config"] for kind in ("head", "worker")
    )
    assert "accessConfigs" not in worker["networkInterfaces"][0]
    assert "serviceAccounts" not in worker
    # `ray up` lays the head's node_config over the account that it made itself.
    assert head["serviceAccounts"][0]["scopes"] == ["https://www.googleapis.com/auth/compute"]
    assert 'config.get("head_node", {})' in inspect.getsource(commands)
    for node in (head, worker):
        given = {item["key"]: item["value"] for item in node["metadata"]["items"]}
        assert given["block-project-ssh-keys"] == "TRUE"
        assert given["ssh-keys"].startswith(f"{config['auth']['ssh_user']}:")


def rayjob() -> dict[str, Any]:
    (job,) = [
        document
        for document in yaml.safe_load_all(KUBERAY.read_text())
        if document["kind"] == "RayJob"
    ]
    spec: dict[str, Any] = job["spec"]
    return spec


def test_rayjob_ends_with_its_cluster() -> None:
    job = rayjob()
    assert job["shutdownAfterJobFinishes"] is True
    assert 0 < job["ttlSecondsAfterFinished"] < 3600
    assert job["activeDeadlineSeconds"]


def test_rayjob_and_image_have_the_tested_ray() -> None:
    (pinned,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert rayjob()["rayClusterSpec"]["rayVersion"] == pinned
    assert f"FROM rayproject/ray:{pinned}-py311\n" in (ROOT / "clusters" / "Dockerfile").read_text()


def test_rayjob_fits_its_image_and_volume() -> None:
    job = rayjob()
    (output,) = re.findall(r"--set output=(\S+)", job["entrypoint"])
    groups = [job["rayClusterSpec"]["headGroupSpec"], *job["rayClusterSpec"]["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        claims = {
            v["name"]
            for v in pod["volumes"]
            if v.get("persistentVolumeClaim") == {"claimName": "raymtl"}
        }
        mounts = {
            m["mountPath"] for m in pod["containers"][0]["volumeMounts"] if m["name"] in claims
        }
        assert any(output.startswith(f"{mount}/") for mount in mounts)
    (config,) = re.findall(r"raymtl tune (\S+)", job["entrypoint"])
    assert (ROOT / config.removeprefix("/opt/raymtl/")).is_file()
    copied = re.findall(
        r"^COPY --chown=ray:users (.+) \S+$", (ROOT / "clusters" / "Dockerfile").read_text(), re.M
    )
    assert {"raymtl", "tune_configs", "pyproject.toml", "constraints.txt"} <= set(
        " ".join(copied).split()
    )
