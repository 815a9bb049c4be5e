"""A run as a service over HTTP: `serve`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from raymtl import run_folder
from raymtl.api.checks import Place
from raymtl.api.run import Run
from raymtl.prediction.trained import load_trained
from raymtl.serving.settings import ServeSettings, new_token, token_of_environment
from raymtl.types import UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Service(NamedTuple):
    """Where a service answers."""

    url: str
    token: str | None
    """What requests carry as `Authorization: Bearer TOKEN`; None where they need none."""


@contextmanager
def serve(
    run: Run | Place,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    address: str | None = None,
    **limits: Any,
) -> Iterator[Service]:
    """Serves a run's best model over HTTP while the `with` block runs. It is `raymtl serve`.

    Args:
        run: a run, its folder, or a model folder such as `RUN/adapted/NAME`.
        host: where it listens.
        port: 0 for one that is free.
        address: of a running Ray cluster; else RAY_ADDRESS, else Ray starts here.
        limits: keys of ServeSettings (docs/serve.md#limits), such as `replicas=2`. Without `token`
            it is that of the variable RAYMTL_SERVE_TOKEN, or a new one; `open=True` needs none.

    Raises:
        UserError: in one sentence what is wrong.

    Example:
        >>> with raymtl.serve("runs/own-data", port=0) as service:
        ...     requests.post(f"{service.url}/predict", json={"rows": [{"area": 70}]})
    """
    settings = _settings(run, limits)
    if settings.open and host not in LOOPBACK:
        raise UserError(
            f"--host: expected a token where other machines can ask at {host}, got --open. Leave "
            "--open away."
        )
    if not settings.open and settings.token is None:
        token = token_of_environment() or new_token()
        settings = settings.model_copy(update={"token": token})
    load_trained(Path(settings.run))
    try:
        from raymtl.serving.service import serving
    except ImportError as error:
        raise UserError(
            f"raymtl serve: expected Ray Serve, which cannot be imported ({error}). Install it by "
            "pip install 'raymtl[serve]'."
        ) from None
    with serving(settings, host=host, port=port, address=address) as url:
        yield Service(url, settings.token)


def _settings(run: Run | Place, limits: dict[str, Any]) -> ServeSettings:
    if isinstance(run, Run):
        folder = run.folder
    else:
        folder = Path(run)
        if not (folder / "config.yaml").is_file():
            folder = run_folder.existing(folder)
    try:
        return ServeSettings(run=str(folder.absolute()), **limits)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"{key}: {first['msg']}, got {first['input']!r:.80}.") from None
