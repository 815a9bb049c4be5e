"""What is wrong with a RayJob or RayCluster for KubeRay (definitions ray.io/v1 of 1.6.2).

https://docs.ray.io/en/master/cluster/kubernetes/references/api.html. The checks are about safety,
cost and what would fail late. Whether every field is known is for `kubectl apply --dry-run=server`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from packaging.version import InvalidVersion, Version

from raymtl.cluster.doctor.check import FLOORS
from raymtl.cluster.files.documents import PLACEHOLDER
from raymtl.cluster.files.validators import container_image

# Where Kubernetes puts the token of the service account.
TOKEN_FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"

Tree = Mapping[str, Any]


def find_problems(documents: Sequence[Tree]) -> Iterator[str]:
    """A sentence for each problem; a RayJob's policies and claims are looked at too."""
    jobs = [document for document in documents if document.get("kind") == "RayJob"]
    clusters = [document for document in documents if document.get("kind") == "RayCluster"]
    if not jobs and not clusters:
        yield (
            "expected a RayJob or a RayCluster, got neither; give a file such as "
            "clusters/kuberay-rayjob.yaml."
        )
    for document in (*jobs, *clusters):
        if document.get("apiVersion") != "ray.io/v1":
            yield f"apiVersion: expected ray.io/v1, got {document.get('apiVersion')}."
    for job in jobs:
        yield from _job(job.get("spec") or {}, documents)
    for cluster in clusters:
        yield from _cluster(cluster.get("spec") or {}, "spec", documents)


def _job(spec: Tree, documents: Sequence[Tree]) -> Iterator[str]:
    if not spec.get("entrypoint"):
        yield "spec.entrypoint: expected a command, got none."
    if spec.get("shutdownAfterJobFinishes") is not True:
        yield (
            "spec.shutdownAfterJobFinishes: expected true, got none; the cluster would stay, and "
            "be paid for."
        )
    if "submitterPodTemplate" in spec:
        yield from _pod(
            spec["submitterPodTemplate"], "spec.submitterPodTemplate", documents, head=False
        )
    if "rayClusterSpec" not in spec:
        yield "spec.rayClusterSpec: expected a cluster of its own, got none."
        return
    yield from _cluster(spec["rayClusterSpec"], "spec.rayClusterSpec", documents)


def _cluster(spec: Tree, where: str, documents: Sequence[Tree]) -> Iterator[str]:
    if spec.get("authOptions", {}).get("mode") != "token":
        yield (
            f"{where}.authOptions.mode: expected token, got none; who reaches the pods could run "
            "programs in them."
        )
    yield from _version(spec.get("rayVersion"), f"{where}.rayVersion")
    scales = spec.get("enableInTreeAutoscaling") is True
    options = spec.get("autoscalerOptions", {})
    if scales:
        yield from _security(options.get("securityContext") or {}, {}, f"{where}.autoscalerOptions")
    head = spec.get("headGroupSpec") or {}
    at = f"{where}.headGroupSpec"
    if head.get("serviceType", "ClusterIP") != "ClusterIP":
        yield (
            f"{at}.serviceType: expected ClusterIP, got {head['serviceType']}, which is reached "
            "from outside."
        )
    if head.get("enableIngress"):
        yield (
            f"{at}.enableIngress: expected false, got true; reach the dashboard by `kubectl "
            "port-forward`."
        )
    if str((head.get("rayStartParams") or {}).get("num-cpus")) != "0":
        yield (
            f'{at}.rayStartParams.num-cpus: expected "0", got none; a trial on the head can take '
            "the cluster down."
        )
    yield from _pod(head.get("template") or {}, f"{at}.template", documents, head=scales)
    groups = spec.get("workerGroupSpecs") or []
    for index, group in enumerate(groups):
        yield from _group(group, f"{where}.workerGroupSpecs.{index}", documents)
    yield from _network(
        documents, head.get("template") or {}, *(group.get("template") or {} for group in groups)
    )


def _version(given: Any, where: str) -> Iterator[str]:
    floor, _ = FLOORS["ray"]
    try:
        if Version(str(given)) < Version(floor):
            yield (
                f"{where}: expected {floor} or newer, got {given}; older ones have known holes "
                "(SECURITY.md)."
            )
    except InvalidVersion:
        yield f"{where}: expected the version of the image's Ray, got {given}; the token needs it."


def _group(group: Tree, where: str, documents: Sequence[Tree]) -> Iterator[str]:
    least, most = group.get("minReplicas", 0), group.get("maxReplicas")
    if most is None:
        yield f"{where}.maxReplicas: expected a number, got none; the default is no limit."
    elif least > most:
        yield f"{where}.minReplicas: expected at most maxReplicas: {most}, got {least}; lower it."
    elif not least <= group.get("replicas", least) <= most:
        yield f"{where}.replicas: expected between {least} and {most}, got {group['replicas']}."
    yield from _pod(group.get("template") or {}, f"{where}.template", documents, head=False)


def _pod(template: Tree, where: str, documents: Sequence[Tree], *, head: bool) -> Iterator[str]:
    """`head` is whether the autoscaler runs in the pod too, which needs the account's token."""
    spec = template.get("spec") or {}
    at = f"{where}.spec"
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            yield f"{at}.{key}: expected none, got true; the pod would see the machine's."
    if not head and spec.get("automountServiceAccountToken") is not False:
        yield (
            f"{at}.automountServiceAccountToken: expected false, got none; programs in the pod "
            "could use it."
        )
    volumes = {volume["name"]: volume for volume in spec.get("volumes") or []}
    yield from _volumes(volumes, f"{at}.volumes", documents)
    containers = spec.get("containers") or []
    if not containers:
        yield f"{at}.containers: expected one, got none."
    for kind in ("initContainers", "containers"):
        for index, container in enumerate(spec.get(kind) or []):
            yield from _container(container, f"{at}.{kind}.{index}", spec, volumes)
    if head and containers:
        yield from _hidden_token(containers[0], f"{at}.containers.0")


def _hidden_token(container: Tree, where: str) -> Iterator[str]:
    """Whether a mount hides the autoscaler's token from the container beside it."""
    mounts = container.get("volumeMounts") or []
    if TOKEN_FOLDER not in {mount["mountPath"] for mount in mounts}:
        yield (
            f"{where}.volumeMounts: expected an empty folder at {TOKEN_FOLDER}, got none; the "
            "search could use the autoscaler's token."
        )


def _volumes(volumes: Tree, where: str, documents: Sequence[Tree]) -> Iterator[str]:
    for name, volume in volumes.items():
        if "hostPath" in volume:
            yield (
                f"{where}.{name}: expected storage of the cluster, got hostPath, a folder of the "
                "machine."
            )
        claim = volume.get("persistentVolumeClaim", {}).get("claimName")
        if claim is not None:
            yield from _claim(claim, f"{where}.{name}", documents)


def _claim(name: str, where: str, documents: Sequence[Tree]) -> Iterator[str]:
    for document in documents:
        if document.get("kind") == "PersistentVolumeClaim" and document["metadata"]["name"] == name:
            modes = document["spec"].get("accessModes") or []
            if "ReadWriteMany" not in modes:
                yield (
                    f"{where}: expected a claim with ReadWriteMany, got {modes}; all pods write to "
                    "the run folder."
                )


def _container(container: Tree, where: str, pod: Tree, volumes: Tree) -> Iterator[str]:
    image = str(container.get("image"))
    expected = container_image(image)
    if expected and not PLACEHOLDER.search(image):
        yield f"{where}.image: expected {expected}, got {image}."
    limits = container.get("resources", {}).get("limits") or {}
    for resource in ("cpu", "memory"):
        if resource not in limits:
            yield (
                f"{where}.resources.limits.{resource}: expected a limit, got none; Ray takes all "
                "of the machine."
            )
    yield from _security(
        container.get("securityContext") or {}, pod.get("securityContext") or {}, where
    )
    for port in container.get("ports") or []:
        if "hostPort" in port:
            yield (
                f"{where}.ports: expected no hostPort, got {port['hostPort']}; it opens the port "
                "on the machine."
            )
    for mount in container.get("volumeMounts") or []:
        if mount["name"] not in volumes:
            yield f"{where}.volumeMounts: expected one of the pod's volumes, got {mount['name']}."
    yield from _secrets(container.get("env") or [], where)


def _secrets(variables: Sequence[Tree], where: str) -> Iterator[str]:
    for variable in variables:
        name = variable["name"]
        is_secret = re.search(r"TOKEN|PASSWORD|SECRET|KEY", name) and name != "RAY_AUTH_TOKEN_PATH"
        if is_secret and "value" in variable:
            yield f"{where}.env.{name}: expected valueFrom.secretKeyRef, got the value itself."


def _security(own: Tree, pod: Tree, where: str) -> Iterator[str]:
    """What of the pod's security context a container does not say itself holds for it."""
    at = f"{where}.securityContext"
    if own.get("runAsNonRoot", pod.get("runAsNonRoot")) is not True:
        yield f"{at}.runAsNonRoot: expected true, got none."
    if own.get("runAsUser", pod.get("runAsUser")) == 0:
        yield f"{at}.runAsUser: expected a user other than root, got 0."
    if own.get("allowPrivilegeEscalation") is not False:
        yield f"{at}.allowPrivilegeEscalation: expected false, got none."
    if own.get("privileged"):
        yield f"{at}.privileged: expected false, got true."
    if "ALL" not in (own.get("capabilities", {}).get("drop") or []):
        yield f"{at}.capabilities.drop: expected [ALL], got none."
    if own.get("seccompProfile", pod.get("seccompProfile", {})).get("type") != "RuntimeDefault":
        yield f"{at}.seccompProfile.type: expected RuntimeDefault, got none."


def _open_to_all(peer: Tree) -> bool:
    if str((peer.get("ipBlock") or {}).get("cidr")).endswith("/0"):
        return True
    everywhere = peer.get("namespaceSelector") == {}
    return everywhere and not peer.get("podSelector")


def _network(documents: Sequence[Tree], *templates: Tree) -> Iterator[str]:
    """Whether a policy keeps others away from every pod."""
    policies = [
        document["spec"] for document in documents if document.get("kind") == "NetworkPolicy"
    ]
    for policy in policies:
        for index, rule in enumerate(policy.get("ingress") or []):
            peers = rule.get("from") or []
            if not peers or any(_open_to_all(peer) for peer in peers):
                yield (
                    f"NetworkPolicy: ingress.{index}: expected who may reach the pods, got all; "
                    "name them."
                )
    selected = [
        policy.get("podSelector", {}).get("matchLabels", {})
        for policy in policies
        if "Ingress" in policy.get("policyTypes", ["Ingress"])
    ]
    for template in templates:
        labels = (template.get("metadata") or {}).get("labels") or {}
        if not any(wanted.items() <= labels.items() for wanted in selected):
            yield (
                "NetworkPolicy: expected one that chooses every pod of the cluster, got none for "
                f"{labels or 'pods without labels'}; Ray's /metrics, gloo and NCCL ask for no "
                "token."
            )
