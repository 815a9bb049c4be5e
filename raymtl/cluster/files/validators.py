"""Which values the placeholders of a shipped cluster file accept: each function says what was
expected instead of a value.
"""

import ipaddress
import re
from collections.abc import Callable
from pathlib import Path

Validator = Callable[[str], str | None]
"""A value -> what was expected instead, or None where the value is valid."""

# An address that SSH is opened to covers at most so many machines: an office, not a continent.
WIDEST = 2**16
_LABEL = r"[a-zA-Z0-9]([a-zA-Z0-9-]*[a-zA-Z0-9])?"
HOSTNAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(\.{_LABEL})*")


def matches(pattern: str, expected: str) -> Validator:
    """Accepts a value that matches the pattern from its beginning to its end."""
    compiled = re.compile(pattern)

    def validate(value: str) -> str | None:
        if compiled.fullmatch(value):
            return None
        return expected

    return validate


def network(value: str) -> str | None:
    """Where SSH is opened to."""
    try:
        parsed = ipaddress.ip_network(value)
    except ValueError:
        return "a network such as 203.0.113.7/32, whose bits behind the / are 0"
    if parsed.num_addresses > WIDEST:
        return f"the addresses that you work from, at most {WIDEST} of them"
    return None


def host(value: str) -> str | None:
    """An address, or a name, that other machines can reach."""
    try:
        parsed = ipaddress.ip_address(value)
    except ValueError:
        wrong = (
            not HOSTNAME.fullmatch(value) or value == "localhost" or re.fullmatch(r"[\d.]+", value)
        )
        if wrong:
            return "an address such as 10.0.0.5, or a host's name"
        return None
    if parsed.is_loopback or parsed.is_unspecified:
        return (
            "an address that the other machines reach it at, not the machine's own view of itself"
        )
    return None


def private_host(value: str) -> str | None:
    """An address, or a name, and not an address that the whole Internet reaches."""
    return host(value) or public_address(value)


def public_address(value: str) -> str | None:
    """Refuses addresses that the whole Internet reaches; says nothing about names."""
    try:
        public = ipaddress.ip_address(value).is_global
    except ValueError:
        return None
    if public:
        return "a private address, or one of a VPN: Ray's ports would stand open on a public one"
    return None


def private_key(value: str) -> str | None:
    """A file that is there, holds a private key without a passphrase, and is its owner's alone."""
    if not re.fullmatch(r"[\w./~+@-]+", value):
        return "a path of letters, digits and . / ~ + @ -"
    path = Path(value).expanduser()
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError):
        return "a file with a private key, which can be read"
    if not re.match(r"-----BEGIN [A-Z ]*PRIVATE KEY-----", text):
        return "a file with a private key, the half without .pub"
    if "ENCRYPTED" in text[:400]:
        return "a private key without a passphrase, which Ray could not ask for"
    if path.stat().st_mode & 0o077:
        return f"a private key that nobody else can read (chmod 600 {value})"
    return None


def account(value: str) -> str | None:
    """The user on the machines."""
    if value == "root":
        return "an account other than root"
    if re.fullmatch(r"[a-z_][a-z0-9_-]{0,31}", value):
        return None
    return "the name of an account"


def container_image(value: str) -> str | None:
    """An image that means the same on all machines, and tomorrow."""
    pattern = r"[a-z0-9]([a-z0-9._/-]|:\d+/)*(:(?P<tag>[\w][\w.-]{0,127})|@sha256:[0-9a-f]{64})"
    image = re.fullmatch(pattern, value)
    if not image or image["tag"] == "latest":
        return (
            "an image with a tag of its own or a digest, such as registry.example.com/raymtl:0.1.0"
        )
    return None


def service_account(value: str) -> str | None:
    """An account of Google Cloud that was made for this."""
    made = re.fullmatch(
        r"[a-z][a-z0-9-]{4,28}[a-z0-9]@[a-z][a-z0-9-]+\.iam\.gserviceaccount\.com", value
    )
    if made:
        return None
    return "an account made for the head, NAME@PROJECT.iam.gserviceaccount.com"


def public_key(value: str) -> str | None:
    """One line of a .pub file."""
    kinds = r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(256|384|521))"
    right = re.fullmatch(kinds + r" [A-Za-z0-9+/]{40,}={0,2}( [\w.@+-]+)?", value)
    if right:
        return None
    return "the line in the .pub file, ssh-ed25519 AAAA..."
