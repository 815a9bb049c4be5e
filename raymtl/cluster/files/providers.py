"""What each provider's file for `ray up` must have, and what in it would leave machines open."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from raymtl.cluster.files.validators import public_address


class Provider(NamedTuple):
    """How the files of a provider are checked."""

    required_keys: tuple[str, ...]
    """The keys of `provider` that must have a value."""
    find_problems: Callable[[Mapping[str, Any]], Iterator[str]]


def _nodes(config: Mapping[str, Any]) -> Iterator[tuple[str, bool, Mapping[str, Any]]]:
    """(dotted key, whether it is the head's, node_config) of every node type."""
    for name, node in config.get("available_node_types", {}).items():
        is_head = name == config.get("head_node_type")
        yield f"available_node_types.{name}.node_config", is_head, node.get("node_config") or {}


def _addresses(config: Mapping[str, Any]) -> Iterator[str]:
    if config["provider"].get("use_internal_ips") is not True:
        yield (
            "provider.use_internal_ips: expected true, got none; Ray would give every machine a "
            "public address."
        )


def _aws(config: Mapping[str, Any]) -> Iterator[str]:
    yield from _addresses(config)
    provider = config["provider"]
    if "aws_credentials" in provider:
        yield (
            "provider.aws_credentials: expected none in the file, got some; use a profile of the "
            "AWS tools."
        )
    if "security_group" in provider:
        yield (
            "provider.security_group: expected node_config.SecurityGroupIds, got a group for Ray "
            "to make, which it would open to SSH from everywhere; make the groups yourself."
        )
    for where, is_head, node in _nodes(config):
        yield from _aws_network(where, node, is_head=is_head)
        yield from _aws_machine(where, node, is_head=is_head)


def _aws_network(where: str, node: Mapping[str, Any], *, is_head: bool) -> Iterator[str]:
    interfaces = node.get("NetworkInterfaces") or []
    if not node.get("SecurityGroupIds") and "NetworkInterfaces" not in node:
        yield (
            f"{where}.SecurityGroupIds: expected groups of your own, got none; Ray would make one "
            "open to SSH."
        )
    if not (node.get("SubnetIds") or node.get("SubnetId") or "NetworkInterfaces" in node):
        yield f"{where}.SubnetIds: expected a subnet, got none; Ray would choose a public one."
    for interface in interfaces:
        for key in ("Groups", "SubnetId"):
            if not interface.get(key):
                yield (
                    f"{where}.NetworkInterfaces: expected {key} of your own, got none; AWS would "
                    "take defaults."
                )
        if interface.get("AssociatePublicIpAddress") and not is_head:
            yield (
                f"{where}.NetworkInterfaces: expected no public address for a worker, got one; "
                "take it away."
            )


def _aws_machine(where: str, node: Mapping[str, Any], *, is_head: bool) -> Iterator[str]:
    tokens = node.get("MetadataOptions", {}).get("HttpTokens")
    if tokens != "required":
        yield (
            f"{where}.MetadataOptions.HttpTokens: expected required, so that only IMDSv2 "
            f"answers, got {tokens or 'none'}."
        )
    disks = node.get("BlockDeviceMappings") or []
    if not disks or any(disk.get("Ebs", {}).get("Encrypted") is not True for disk in disks):
        yield (
            f"{where}.BlockDeviceMappings: expected Ebs.Encrypted: true for every disk, got one "
            "without."
        )
    if not is_head and "IamInstanceProfile" in node:
        yield (
            f"{where}.IamInstanceProfile: expected none for a worker, got some; trials could use "
            "it."
        )
    if is_head and "IamInstanceProfile" not in node:
        yield (
            f"{where}.IamInstanceProfile: expected one, got none; Ray would make a role for all of "
            "EC2 and S3."
        )


def _gcp(config: Mapping[str, Any]) -> Iterator[str]:
    yield from _addresses(config)
    provider = config["provider"]
    if "gcp_credentials" in provider:
        yield (
            "provider.gcp_credentials: expected none in the file, got some; use application "
            "default credentials."
        )
    region, zone = str(provider.get("region")), str(provider.get("availability_zone"))
    if zone.rpartition("-")[0] != region and "REPLACE_WITH" not in region + zone:
        yield (
            f"provider.availability_zone: expected a zone of provider.region: {region}, got {zone}."
        )
    for where, is_head, node in _nodes(config):
        yield from _gcp_network(where, node, region, is_head=is_head)
        yield from _gcp_accounts(where, node, is_head=is_head)


def _gcp_network(
    where: str, node: Mapping[str, Any], region: str, *, is_head: bool
) -> Iterator[str]:
    if not node.get("networkInterfaces"):
        yield (
            f"{where}.networkInterfaces: expected a subnetwork, got none; Ray would give public "
            "addresses."
        )
    for interface in node.get("networkInterfaces", []):
        if interface.get("accessConfigs") and not is_head:
            yield (
                f"{where}.networkInterfaces: expected no accessConfigs for a worker, got a public "
                "address."
            )
        subnetwork = str(interface.get("subnetwork"))
        elsewhere = "/regions/" in subnetwork and f"/regions/{region}/" not in subnetwork
        if elsewhere and "REPLACE_WITH" not in region:
            yield (
                f"{where}.networkInterfaces: expected a subnetwork of provider.region: {region}, "
                f"got {subnetwork}."
            )


def _gcp_accounts(where: str, node: Mapping[str, Any], *, is_head: bool) -> Iterator[str]:
    accounts = node.get("serviceAccounts") or []
    if is_head and not accounts:
        yield (
            f"{where}.serviceAccounts: expected an account of its own, got none; Ray would give it "
            "compute.admin."
        )
    if not is_head and accounts:
        yield f"{where}.serviceAccounts: expected none for a worker, got some; trials could use it."
    for account in accounts:
        if any(str(scope).endswith("/cloud-platform") for scope in account.get("scopes", [])):
            yield (
                f"{where}.serviceAccounts: expected the scope compute, got cloud-platform, which "
                "is everything."
            )
        if "-compute@developer" in str(account.get("email")):
            yield (
                f"{where}.serviceAccounts: expected an account made for this, got the project's "
                "default one."
            )


def _local(config: Mapping[str, Any]) -> Iterator[str]:
    provider = config["provider"]
    workers = provider.get("worker_ips") or []
    every = [
        ("head_ip", provider.get("head_ip")),
        *((f"worker_ips.{i}", ip) for i, ip in enumerate(workers)),
    ]
    for key, address in every:
        expected = public_address(str(address))
        if expected:
            yield f"provider.{key}: expected {expected}, got {address}."
    seen = [address for _, address in every]
    for address in sorted({str(address) for address in seen if seen.count(address) > 1}):
        yield f"provider.worker_ips: expected every machine once, got {address} twice."
    if config.get("auth", {}).get("ssh_user") == "root":
        yield "auth.ssh_user: expected an account other than root, got root."


PROVIDERS = {
    "aws": Provider(("region",), _aws),
    "gcp": Provider(("region", "availability_zone", "project_id"), _gcp),
    "local": Provider(("head_ip", "worker_ips"), _local),
}
