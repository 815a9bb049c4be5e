"""A shipped cluster file, filled, has nothing left to find; every single fault put into it is found and named."""

import copy
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from raymtl.cli import app, main
from raymtl.cli.cluster import ask
from raymtl.cluster.files.check import check_text
from raymtl.cluster.files.documents import PLACEHOLDER
from raymtl.cluster.files.render import fill, render
from raymtl.cluster.files.templates import TEMPLATES
from raymtl.types import UserError

ROOT = Path(__file__).parent.parent.parent
TARGETS = pytest.mark.parametrize("target", TEMPLATES)
ANSWERS = {
    "aws": {
        "region": "eu-central-1",
        "your_cidr": "203.0.113.7/32",
        "private_key_file": "~/key",
        "key_pair_name": "raymtl",
        "ami_id": "ami-0123456789abcdef0",
        "head_subnet_id": "subnet-0123456789abcdef0",
        "worker_subnet_id": "subnet-0123456789abcdef1",
        "cluster_security_group_id": "sg-0123456789abcdef0",
        "ssh_security_group_id": "sg-0123456789abcdef1",
        "head_instance_profile": "raymtl-head",
        "efs_dns_name": "fs-0123456789abcdef0.efs.eu-central-1.amazonaws.com",
    },
    "gcp": {
        "project_id": "raymtl-123456",
        "region": "europe-west4",
        "zone": "europe-west4-a",
        "your_cidr": "203.0.113.0/28",
        "private_key_file": "~/key",
        "public_key": f"ssh-ed25519 {'A' * 68} me@here",
        "image": "projects/some-project/global/images/family/some-image",
        "subnetwork": "projects/raymtl-123456/regions/europe-west4/subnetworks/raymtl",
        "head_service_account": "raymtl-head@raymtl-123456.iam.gserviceaccount.com",
        "filestore_address": "10.20.0.2",
    },
    "local": {
        "head_address": "10.0.0.1",
        "first_worker_address": "10.0.0.2",
        "second_worker_address": "10.0.0.3",
        "user": "learner",
        "private_key_file": "~/key",
        "interface": "eth0",
    },
    "kuberay": {
        "image": "registry.example.com:5000/team/raymtl:0.1.0",
        "storage_class": "efs-sc",
        "operator_namespace": "kuberay-system",
    },
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a private key and a token, as the files ask for."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ray").mkdir()
    for name, text in (
        (".ray/raymtl_token", "secret"),
        ("key", "-----BEGIN OPENSSH PRIVATE KEY-----\n"),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    return tmp_path


def filled(target: str) -> str:
    return render(target, ANSWERS[target], None, ROOT)


@TARGETS
def test_placeholders_and_questions_are_the_same(target: str) -> None:
    text = (ROOT / TEMPLATES[target].path).read_text()
    assert {name.lower() for name in PLACEHOLDER.findall(text)} == set(TEMPLATES[target].questions)


@TARGETS
def test_filled_files_pass_the_check(target: str) -> None:
    """They keep their comments."""
    text = filled(target)
    assert check_text(text, Path(target), ROOT) == []
    assert not PLACEHOLDER.search(text)
    before = (ROOT / TEMPLATES[target].path).read_text()
    kept = [line for line in before.splitlines() if "#" in line and not PLACEHOLDER.search(line)]
    assert len(kept) > 15
    assert set(kept) <= set(text.splitlines())


@TARGETS
def test_shipped_files_lack_their_placeholders_alone(target: str) -> None:
    path = TEMPLATES[target].path
    found = check_text((ROOT / path).read_text(), path, ROOT)
    assert found
    assert all("got REPLACE_WITH_" in sentence for sentence in found)


@pytest.mark.parametrize(
    ("given", "workers"),
    [
        ("none", ["10.0.0.2"]),
        ("10.0.0.3", ["10.0.0.2", "10.0.0.3"]),
        ("10.0.0.3, w4", ["10.0.0.2", "10.0.0.3", "w4"]),
    ],
)
def test_any_number_of_machines(given: str, workers: list[str]) -> None:
    text = render("local", {**ANSWERS["local"], "second_worker_address": given}, None, ROOT)
    assert yaml.safe_load(text)["provider"]["worker_ips"] == workers


def test_two_placeholders_repeat_the_single_one() -> None:
    text = "a REPLACE_WITH_ONE: REPLACE_WITH_MANY_MORE\nb REPLACE_WITH_...\n"
    assert (
        fill(text, {"one": ["x"], "many_more": ["y", "z"]})
        == "a x: y\na x: z\nb REPLACE_WITH_...\n"
    )
    assert fill(text, {"one": ["x"], "many_more": []}) == "b REPLACE_WITH_...\n"


@pytest.mark.parametrize(
    ("target", "name", "wrong"),
    [
        ("aws", "region", "Frankfurt"),
        ("aws", "region", "eu-central-1\nextra: key"),
        ("aws", "your_cidr", "0.0.0.0/0"),
        ("aws", "your_cidr", "203.0.113.7/24"),
        ("aws", "your_cidr", "my house"),
        ("aws", "private_key_file", "~/none"),
        ("aws", "private_key_file", "~/.ray/raymtl_token"),
        ("aws", "private_key_file", "key; rm -rf ~"),
        ("aws", "ami_id", "ubuntu"),
        ("aws", "head_subnet_id", "sg-0123456789abcdef0"),
        ("aws", "key_pair_name", "a b"),
        ("aws", "efs_dns_name", "fs-1.efs; reboot"),
        ("gcp", "project_id", "My Project"),
        ("gcp", "zone", "europe-west4"),
        ("gcp", "public_key", "-----BEGIN OPENSSH PRIVATE KEY-----"),
        ("gcp", "head_service_account", "123-compute@developer.gserviceaccount.com"),
        ("gcp", "filestore_address", "8.8.8.8"),
        ("local", "head_address", "127.0.0.1"),
        ("local", "head_address", "localhost"),
        ("local", "first_worker_address", "8.8.8.8"),
        ("local", "first_worker_address", "10.0.0.999"),
        ("local", "second_worker_address", "10.0.0.3,"),
        ("local", "user", "root"),
        ("local", "interface", "lo"),
        ("kuberay", "image", "raymtl"),
        ("kuberay", "image", "raymtl:latest"),
        ("kuberay", "storage_class", "EFS"),
    ],
)
def test_wrong_answers_are_refused_by_name(target: str, name: str, wrong: str) -> None:
    with pytest.raises(UserError, match=rf"^{name}: expected .*, got '"):
        render(target, {**ANSWERS[target], name: wrong}, None, ROOT)


def test_unsafe_private_keys_are_refused(home: Path) -> None:
    """Those that others read, and those with a passphrase."""
    (home / "key").chmod(0o640)
    with pytest.raises(UserError, match="chmod 600 ~/key"):
        filled("aws")
    (home / "key").write_text("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n")
    with pytest.raises(UserError, match="without a passphrase"):
        filled("aws")


def test_missing_and_unknown_answers_are_named() -> None:
    some = {key: value for key, value in ANSWERS["aws"].items() if key not in ("region", "ami_id")}
    with pytest.raises(UserError, match="expected a value for region, ami_id, got none"):
        render("aws", some, None, ROOT)
    with pytest.raises(UserError, match="Did you mean region"):
        render("aws", {"regoin": "eu-central-1"}, None, ROOT)
    with pytest.raises(UserError, match="expected one of aws, gcp, local, kuberay, got 'azure'"):
        render("azure", {}, None, ROOT)
    with pytest.raises(UserError, match=r"cluster\.yaml: no such file"):
        render("aws", ANSWERS["aws"], None, ROOT / "docs")


def test_what_is_not_given_is_asked_for() -> None:
    asked = []

    def ask(name: str, question: Any) -> str:
        asked.append(name)
        return ANSWERS["local"][name]

    assert render("local", {"user": "learner"}, ask, ROOT) == filled("local")
    assert asked == [name for name in TEMPLATES["local"].questions if name != "user"]


GONE = "(taken away)"
HEAD, WORKER = ("available_node_types.head", "available_node_types.worker")
OPEN_START = ["ray start --head --dashboard-host=127.0.0.1"]
CLUSTER = "spec.rayClusterSpec"
POD = f"{CLUSTER}.workerGroupSpecs.0.template.spec"
FAULTS: dict[str, list[tuple[str, Any, str]]] = {
    "aws": [
        ("provider.region", GONE, "provider.region: "),
        ("provider.use_internal_ips", GONE, "provider.use_internal_ips: "),
        ("provider.security_group", {"GroupName": "x"}, "provider.security_group: "),
        ("provider.aws_credentials", {"aws_access_key_id": "x"}, "provider.aws_credentials: "),
        ("provider.type", "azure", "provider.type: "),
        ("max_workerz", 1, "Ray refuses the file: "),
        ("max_workers", "many", "max_workers: Ray refuses the file: "),
        ("max_workers", 2, f"{WORKER}.max_workers: "),
        (f"{WORKER}.min_workers", 5, "Ray refuses the file: "),
        (f"{WORKER}.max_workers", -1, f"{WORKER}.min_workers: "),
        ("head_node_type", "haed", "Ray refuses the file: "),
        ("available_node_types", GONE, "Ray refuses the file: "),
        (f"{WORKER}.node_config.SecurityGroupIds", [], f"{WORKER}.node_config.SecurityGroupIds: "),
        (f"{HEAD}.node_config.SubnetIds", GONE, f"{HEAD}.node_config.SubnetIds: "),
        (f"{HEAD}.node_config.IamInstanceProfile", GONE, f"{HEAD}.node_config.IamInstanceProfile: "),
        (f"{WORKER}.node_config.IamInstanceProfile", {"Name": "x"}, f"{WORKER}.node_config.IamInstanceProfile: "),
        ("auth.ssh_user", GONE, "auth.ssh_user: "),
        (
            "head_start_ray_commands.1",
            ". ~/raymtl.env || exit 1; RAY_AUTH_MODE=disabled ray start --head --dashboard-host=127.0.0.1",
            "head_start_ray_commands.1: expected RAY_AUTH_MODE=token, got RAY_AUTH_MODE=disabled",
        ),
        (f"{WORKER}.node_config.MetadataOptions", {"HttpTokens": "optional"}, f"{WORKER}.node_config.MetadataOptions"),
        (f"{HEAD}.node_config.BlockDeviceMappings.0.Ebs.Encrypted", False, f"{HEAD}.node_config.BlockDeviceMappings: "),
        (f"{WORKER}.node_config.BlockDeviceMappings", GONE, f"{WORKER}.node_config.BlockDeviceMappings: "),
        (
            f"{WORKER}.node_config.BlockDeviceMappings",
            [{"DeviceName": name, "Ebs": {"Encrypted": name == "/dev/sda1"}} for name in ("/dev/sda1", "/dev/sdb")],
            f"{WORKER}.node_config.BlockDeviceMappings: ",
        ),
        (
            f"{WORKER}.node_config.NetworkInterfaces",
            [{"AssociatePublicIpAddress": True, "Groups": ["sg-1"], "SubnetId": "subnet-1"}],
            f"{WORKER}.node_config.NetworkInterfaces: expected no public address",
        ),
        (
            f"{WORKER}.node_config.NetworkInterfaces",
            [{"SubnetId": "subnet-1"}],
            f"{WORKER}.node_config.NetworkInterfaces: expected Groups",
        ),
    ],
    "gcp": [
        ("provider.availability_zone", GONE, "provider.availability_zone: "),
        ("provider.availability_zone", "us-west1-a", "provider.availability_zone: "),
        ("provider.project_id", None, "provider.project_id: "),
        ("provider.use_internal_ips", False, "provider.use_internal_ips: "),
        ("provider.gcp_credentials", {"type": "service_account", "credentials": "{}"}, "provider.gcp_credentials: "),
        (f"{WORKER}.node_config.networkInterfaces.0.accessConfigs", [{}], f"{WORKER}.node_config.networkInterfaces: "),
        (f"{WORKER}.node_config.networkInterfaces", GONE, f"{WORKER}.node_config.networkInterfaces: "),
        (
            f"{WORKER}.node_config.networkInterfaces.0.subnetwork",
            "projects/p/regions/us-west1/subnetworks/s",
            f"{WORKER}.node_config.networkInterfaces: ",
        ),
        (f"{WORKER}.node_config.serviceAccounts", [{"email": "x"}], f"{WORKER}.node_config.serviceAccounts: "),
        (f"{HEAD}.node_config.serviceAccounts", GONE, f"{HEAD}.node_config.serviceAccounts: "),
        (
            f"{HEAD}.node_config.serviceAccounts.0.scopes",
            ["https://www.googleapis.com/auth/cloud-platform"],
            f"{HEAD}.node_config.serviceAccounts: ",
        ),
        (
            f"{HEAD}.node_config.serviceAccounts.0.email",
            "1-compute@developer.gserviceaccount.com",
            f"{HEAD}.node_config.serviceAccounts: ",
        ),
    ],
    "local": [
        ("provider.head_ip", GONE, "Ray refuses the file: "),
        ("provider.head_ip", "8.8.8.8", "provider.head_ip: "),
        ("provider.worker_ips.0", "10.0.0.1", "provider.worker_ips: "),
        ("auth.ssh_user", "root", "auth.ssh_user: "),
        ("auth.ssh_private_key", "~/none", "auth.ssh_private_key: "),
        ("file_mounts.~/raymtl/raymtl", "src", "file_mounts.~/raymtl/raymtl: "),
        ("file_mounts.~/.ray/raymtl_token", GONE, "setup_commands.0: expected file_mounts"),
        ("setup_commands", ["true"], "setup_commands: expected RAY_AUTH_MODE=token"),
        ("setup_commands.1", "export RAY_AUTH_TOKEN=abc", "setup_commands.1: expected RAY_AUTH_TOKEN_PATH"),
        ("head_start_ray_commands", OPEN_START, "head_start_ray_commands.0: "),
        ("worker_start_ray_commands", ["ray start --address=$RAY_HEAD_IP"], "worker_start_ray_commands.0: "),
        ("worker_start_ray_commands", GONE, "worker_start_ray_commands: "),
        (
            "head_start_ray_commands.1",
            ". ~/raymtl.env || exit 1; ray start --head --dashboard-host 0.0.0.0",
            "head_start_ray_commands.1: expected --dashboard-host",
        ),
    ],
    "kuberay": [
        (f"{CLUSTER}.authOptions", GONE, f"{CLUSTER}.authOptions.mode: "),
        (f"{CLUSTER}.authOptions.mode", "disabled", f"{CLUSTER}.authOptions.mode: "),
        (f"{CLUSTER}.rayVersion", "2.54.1", f"{CLUSTER}.rayVersion: "),
        (f"{CLUSTER}.rayVersion", GONE, f"{CLUSTER}.rayVersion: "),
        (f"{CLUSTER}.autoscalerOptions.securityContext", GONE, f"{CLUSTER}.autoscalerOptions.securityContext"),
        (f"{CLUSTER}.headGroupSpec.serviceType", "LoadBalancer", f"{CLUSTER}.headGroupSpec.serviceType: "),
        (f"{CLUSTER}.headGroupSpec.enableIngress", True, f"{CLUSTER}.headGroupSpec.enableIngress: "),
        (f"{CLUSTER}.headGroupSpec.rayStartParams.num-cpus", GONE, f"{CLUSTER}.headGroupSpec.rayStartParams.num-cpus"),
        (
            f"{CLUSTER}.headGroupSpec.template.spec.containers.0.volumeMounts.3",
            {"name": "ray", "mountPath": "/elsewhere"},
            f"{CLUSTER}.headGroupSpec.template.spec.containers.0.volumeMounts: ",
        ),
        (f"{CLUSTER}.workerGroupSpecs.0.minReplicas", 5, f"{CLUSTER}.workerGroupSpecs.0.minReplicas: "),
        (f"{CLUSTER}.workerGroupSpecs.0.replicas", 9, f"{CLUSTER}.workerGroupSpecs.0.replicas: "),
        (f"{CLUSTER}.workerGroupSpecs.0.maxReplicas", GONE, f"{CLUSTER}.workerGroupSpecs.0.maxReplicas: "),
        (f"{CLUSTER}.workerGroupSpecs.0.template.metadata", GONE, "NetworkPolicy: "),
        (f"{POD}.automountServiceAccountToken", GONE, f"{POD}.automountServiceAccountToken: "),
        (f"{POD}.hostNetwork", True, f"{POD}.hostNetwork: "),
        (f"{POD}.securityContext.runAsUser", 0, f"{POD}.containers.0.securityContext.runAsUser: "),
        (f"{POD}.volumes.1", {"name": "ray", "hostPath": {"path": "/"}}, f"{POD}.volumes.ray: "),
        (f"{POD}.volumes.1.name", "other", f"{POD}.containers.0.volumeMounts: "),
        (f"{POD}.containers.0.image", "raymtl:latest", f"{POD}.containers.0.image: "),
        (f"{POD}.initContainers", [{"name": "x", "image": "y"}], f"{POD}.initContainers.0.securityContext"),
        (f"{POD}.containers.0.resources.limits", GONE, f"{POD}.containers.0.resources.limits.cpu: "),
        (f"{POD}.containers.0.securityContext", GONE, f"{POD}.containers.0.securityContext"),
        (f"{POD}.containers.0.securityContext.privileged", True, f"{POD}.containers.0.securityContext.privileged: "),
        (f"{POD}.containers.0.securityContext.capabilities.drop", [], f"{POD}.containers.0.securityContext.capab"),
        (f"{POD}.containers.0.env.0", {"name": "RAY_AUTH_TOKEN", "value": "x"}, f"{POD}.containers.0.env.RAY_AUTH_TOKEN"),
        ("spec.shutdownAfterJobFinishes", GONE, "spec.shutdownAfterJobFinishes: "),
        ("spec.entrypoint", GONE, "spec.entrypoint: "),
        ("apiVersion", "ray.io/v1alpha1", "apiVersion: "),
        ("kind", "Job", "expected a RayJob or a RayCluster"),
    ],
}  # fmt: skip


def broken(tree: Any, path: Sequence[str], value: Any) -> None:
    """Puts the value there, or takes what is there away; a key may itself have dots."""
    if isinstance(tree, list):
        key: Any = int(path[0])
        rest = path[1:]
    else:
        whole = ".".join(path)
        key = next((k for k in tree if whole == k or whole.startswith(f"{k}.")), path[0])
        rest = whole[len(key) + 1 :].split(".") if whole != key else []
    if rest and rest != [""]:
        broken(tree[key], rest, value)
    elif value == GONE:
        del tree[key]
    else:
        tree[key] = value


@pytest.mark.parametrize(
    ("ingress", "index"),
    [
        ([{}], 0),
        ([{"from": []}], 0),
        ([{"from": [{"podSelector": {}}]}, {"from": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]}], 1),
        ([{"from": [{"ipBlock": {"cidr": "::/0"}}]}], 0),
        ([{"from": [{"namespaceSelector": {}}]}], 0),
    ],
)
def test_a_policy_that_lets_everybody_in_is_found(ingress: list[Any], index: int) -> None:
    documents = list(yaml.safe_load_all(filled("kuberay")))
    (policy,) = (document for document in documents if document["kind"] == "NetworkPolicy")
    policy["spec"]["ingress"] = ingress
    assert check_text(written(documents), Path("file"), ROOT) == [
        f"file: NetworkPolicy: ingress.{index}: expected who may reach the pods, got all; name them."
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "cluster_name: a\nmax_workers: 1\nmax_workers: 9\n",
            r"file:3: max_workers: the key stands twice",
        ),
        ("rsync_exclude: &r [*r]\n", r"over 20\. Remove the alias that contains itself"),
        (
            "a0: &a0 {k: 1}\n"
            + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)),
            "Remove aliases that multiply",
        ),
    ],
)
def test_repeated_or_multiplying_keys_are_one_sentence(text: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        check_text(text, Path("file"), ROOT)


def test_unsafe_tokens_are_found(home: Path) -> None:
    """Empty ones, and those open to others."""
    token = home / ".ray" / "raymtl_token"
    for content, mode, says in (("", 0o600, "which is empty"), ("secret", 0o644, "chmod 600")):
        token.write_text(content)
        token.chmod(mode)
        (sentence,) = check_text(filled("local"), Path("file"), ROOT)
        assert (
            sentence.startswith("file: file_mounts.~/.ray/raymtl_token: expected")
            and says in sentence
        )


class Plain(yaml.SafeDumper):
    """Writes what is mentioned twice out twice, so that a fault is in one place."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def written(documents: list[Any]) -> str:
    text: str = yaml.dump_all(documents, Dumper=Plain)
    return text


@pytest.mark.parametrize(
    ("target", "path", "value", "expected"),
    [(target, *fault) for target, faults in FAULTS.items() for fault in faults],
)
def test_every_single_fault_is_found_and_named(
    target: str, path: str, value: Any, expected: str
) -> None:
    documents = list(yaml.safe_load_all(written(list(yaml.safe_load_all(filled(target))))))
    broken(documents[-1], path.split("."), copy.deepcopy(value))
    found = check_text(written(documents), Path("file"), ROOT)
    assert found, f"{path} passed"
    assert any(sentence.startswith(f"file: {expected}") for sentence in found), found
    assert all(re.fullmatch(r"file: .+\.", sentence) for sentence in found)


def paths(tree: Any, before: str = "") -> list[str]:
    """Every dotted path in the tree."""
    pairs = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    return [
        path
        for key, value in pairs
        for path in (f"{before}{key}", *paths(value, f"{before}{key}."))
    ]


@pytest.mark.parametrize(("first", "wrong"), enumerate([3, None, "text", [], {}]))
@pytest.mark.parametrize("target", ["aws", "kuberay"])
def test_wrong_types_never_end_in_tracebacks(target: str, first: int, wrong: Any) -> None:
    original = list(yaml.safe_load_all(written(list(yaml.safe_load_all(filled(target))))))
    every = paths(original[-1])
    assert len(every) > 80
    for path in every[first::10]:
        documents = copy.deepcopy(original)
        broken(documents[-1], path.split("."), wrong)
        assert isinstance(check_text(written(documents), Path("file"), ROOT), list), path


def test_wrong_answers_are_asked_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said = iter(["root", "learner"])
    monkeypatch.setattr("typer.prompt", lambda text, err: next(said))
    assert ask("user", TEMPLATES["local"].questions["user"]) == "learner"
    assert "an account other than root" in capsys.readouterr().err


def test_the_walk_through_asks_for_what_there_is() -> None:
    text = (ROOT / "docs" / "cluster.md").read_text()
    (shown,) = re.findall(r"raymtl cluster render local ((?:--set \S+ (?:\\\n *)?)+)", text)
    assert set(re.findall(r"--set (\w+)=", shown)) == set(TEMPLATES["local"].questions)
    assert all(f"{target}" in text for target in TEMPLATES)


def test_fault_beside_the_rayjob_is_found() -> None:
    text = filled("kuberay")
    for before, after, expected in (
        ("ReadWriteMany", "ReadWriteOnce", "a claim with ReadWriteMany"),
        ("kind: NetworkPolicy", "kind: Other", "NetworkPolicy: "),
    ):
        assert before in text
        found = check_text(text.replace(before, after), Path("file"), ROOT)
        assert any(expected in sentence for sentence in found), found


@pytest.mark.parametrize(
    "text", ["a: [", "- 1", "", "a: 1\n---\n- 2", "!!python/object/apply:os.system [echo]"]
)
def test_file_that_is_none_is_a_users_error(text: str) -> None:
    with pytest.raises(UserError, match=r"^file: "):
        check_text(text, Path("file"), ROOT)


def test_commands_write_check_and_refuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    sets = [part for key, value in ANSWERS["local"].items() for part in ("--set", f"{key}={value}")]
    path = tmp_path / "mine.yaml"
    done = CliRunner().invoke(app, ["cluster", "render", "local", *sets, "--output", str(path)])
    assert (done.exit_code, done.stdout) == (0, f"{path}\n")
    assert path.read_text() == filled("local")
    assert CliRunner().invoke(app, ["cluster", "check", str(path)]).exit_code == 0
    path.write_text(path.read_text().replace("127.0.0.1", "0.0.0.0"))
    refused = CliRunner().invoke(app, ["cluster", "check", str(path)])
    assert refused.exit_code == 2
    assert "--dashboard-host=127.0.0.1" in refused.stderr
    monkeypatch.setattr(
        "sys.argv", ["raymtl", "cluster", "render", "local", *sets, "--output", str(path)]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2


def test_render_writes_no_faulty_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(Path.home() / ".ray")
    monkeypatch.chdir(ROOT)
    sets = [part for key, value in ANSWERS["local"].items() for part in ("--set", f"{key}={value}")]
    done = CliRunner().invoke(
        app, ["cluster", "render", "local", *sets, "--output", str(tmp_path / "mine.yaml")]
    )
    assert done.exit_code == 2
    assert "openssl rand -hex 32" in done.stderr
    assert not (tmp_path / "mine.yaml").exists()
