"""The cluster files that raymtl ships, and the questions for their placeholders."""

from pathlib import Path
from typing import NamedTuple

from raymtl.cluster.files import validators
from raymtl.cluster.files.validators import Validator, matches


class Question(NamedTuple):
    """How the value of a placeholder REPLACE_WITH_NAME is asked for and validated."""

    ask: str
    validate: Validator
    several: bool = False
    """Whether there may be several values, separated by commas, each on a line of its own; `none`
    stands for no value.
    """


class Template(NamedTuple):
    """A file of the checkout, and its questions by the placeholder's name in small letters, in
    order.
    """

    path: Path
    questions: dict[str, Question]


KEY_FILE = Question("Private key file, made for this cluster", validators.private_key)
CIDR = Question("Addresses that you work from, as a CIDR", validators.network)
DNS_LABEL = matches(
    r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", "a name of small letters, digits, - and ."
)


def _id(kind: str) -> Validator:
    return matches(rf"{kind}-[0-9a-f]{{8,17}}", f"an id such as {kind}-0123456789abcdef0")


TEMPLATES = {
    "aws": Template(
        Path("cluster.yaml"),
        {
            "region": Question(
                "Region",
                matches(r"[a-z]{2}(-[a-z]+){1,2}-\d", "a region of AWS such as eu-central-1"),
            ),
            "your_cidr": CIDR,
            "private_key_file": KEY_FILE,
            "key_pair_name": Question(
                "EC2 key pair of that key", matches(r"[\w.@+-]{1,255}", "the name of a key pair")
            ),
            "ami_id": Question("Image with NVIDIA's driver and Python 3.11 or newer", _id("ami")),
            "head_subnet_id": Question("Public subnet, for the head", _id("subnet")),
            "worker_subnet_id": Question("Private subnet, for the workers", _id("subnet")),
            "cluster_security_group_id": Question("Security group raymtl-cluster", _id("sg")),
            "ssh_security_group_id": Question("Security group raymtl-ssh", _id("sg")),
            "head_instance_profile": Question(
                "Instance profile of the head",
                matches(r"[\w+=,.@-]{1,128}", "the name of an instance profile"),
            ),
            "efs_dns_name": Question("DNS name of the shared file system", validators.host),
        },
    ),
    "gcp": Template(
        Path("clusters/gcp.yaml"),
        {
            "project_id": Question(
                "Project",
                matches(
                    r"[a-z][a-z0-9-]{4,28}[a-z0-9]",
                    "a project's id, 6 to 30 small letters, digits and -",
                ),
            ),
            "region": Question(
                "Region",
                matches(r"[a-z]+-[a-z]+\d+", "a region of Google Cloud such as europe-west4"),
            ),
            "zone": Question(
                "Zone", matches(r"[a-z]+-[a-z]+\d+-[a-z]", "a zone such as europe-west4-a")
            ),
            "your_cidr": CIDR,
            "private_key_file": KEY_FILE,
            "public_key": Question(
                "Public half of that key (the line in its .pub file)", validators.public_key
            ),
            "image": Question(
                "Image with NVIDIA's driver and Python 3.11 or newer",
                matches(
                    r"projects/[\w.:-]+/global/images/(family/)?[a-z0-9-]+",
                    "projects/PROJECT/global/images/NAME",
                ),
            ),
            "subnetwork": Question(
                "Subnetwork",
                matches(
                    r"projects/[\w.:-]+/regions/[a-z0-9-]+/subnetworks/[a-z0-9-]+",
                    "projects/PROJECT/regions/REGION/subnetworks/NAME",
                ),
            ),
            "head_service_account": Question(
                "Service account of the head", validators.service_account
            ),
            "filestore_address": Question(
                "Private address of the shared file system", validators.private_host
            ),
        },
    ),
    "local": Template(
        Path("clusters/local.yaml"),
        {
            "head_address": Question(
                "Address of the machine that coordinates", validators.private_host
            ),
            "first_worker_address": Question("Address of another machine", validators.private_host),
            "second_worker_address": Question(
                "Addresses of further machines, separated by commas, or none",
                validators.private_host,
                several=True,
            ),
            "user": Question("Account on all of them", validators.account),
            "private_key_file": KEY_FILE,
            "interface": Question(
                "Network interface that they share, such as eth0",
                matches(
                    r"(?!lo$)[A-Za-z0-9_.-]{1,15}",
                    "an interface's name, as `ip -br addr` shows it, and not lo",
                ),
            ),
        },
    ),
    "kuberay": Template(
        Path("clusters/kuberay-rayjob.yaml"),
        {
            "image": Question(
                "Image that you pushed, with a tag of its own", validators.container_image
            ),
            "storage_class": Question("Storage class that offers ReadWriteMany", DNS_LABEL),
            "operator_namespace": Question("Namespace that KubeRay's operator runs in", DNS_LABEL),
        },
    ),
}
