"""What a service is started with, and what it accepts."""

import os
import secrets
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

TOKEN_VARIABLE = "RAYMTL_SERVE_TOKEN"
"""The environment variable with the token of requests."""


class ServeSettings(BaseModel):
    """A service and its limits.

    Example:
        >>> ServeSettings(run="/nfs/runs/own-data", replicas=4, kept_mb=1024)
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    """The run folder or model folder, as all machines of the cluster see it."""
    token: Annotated[str, Field(min_length=8)] | None = None
    """What requests have to carry; by default the variable RAYMTL_SERVE_TOKEN of the gateway."""
    open: bool = False
    """Whether requests need no token."""
    replicas: PositiveInt = 1
    """Processes that hold the model."""
    cpus: PositiveFloat = 1
    """Cores that Ray reserves for each of them."""
    gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs that Ray reserves for each; with any the model computes there."""
    kept_mb: PositiveFloat = 256
    """What the parameters of adapted models may take in each process, and their support sets in the
    gateway. Those that were not used for the longest time go first.
    """
    request_mb: PositiveFloat = 8
    """The largest body of a request."""
    rows: PositiveInt = 4096
    """The most rows of a request."""
    batch: PositiveInt = 64
    """The most requests that are computed together."""
    wait_ms: Annotated[float, Field(ge=0)] = 4
    """How long the first request of a batch waits for others."""
    queue: PositiveInt = 1000
    """How many requests may wait; others are told to come again (503)."""
    timeout_s: PositiveFloat = 60
    """How long a request may take (504), the restart of a lost process included."""


def new_token() -> str:
    """A token that nobody can guess."""
    return secrets.token_urlsafe(24)


def token_of_environment() -> str | None:
    """The token that the variable RAYMTL_SERVE_TOKEN holds."""
    return os.environ.get(TOKEN_VARIABLE) or None
