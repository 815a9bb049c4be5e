"""Serving the best model of a run over HTTP: `serve`."""

import signal
import threading
from types import FrameType
from typing import Annotated

import typer

import raymtl
from raymtl.cli.options import Address, Run
from raymtl.reporting.console import plain_console

Host = Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 for all networks.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0 for one that is free.")]
Replicas = Annotated[int, typer.Option(min=1, help="How many processes hold the model.")]
Cpus = Annotated[float, typer.Option(min=0.1, help="Cores of each process.")]
Gpus = Annotated[float, typer.Option(min=0, help="GPUs of each process.")]
Kept = Annotated[float, typer.Option(help="What adapted models may take in each process, in MB.")]
Largest = Annotated[float, typer.Option(help="The largest request, in MB.")]
Rows = Annotated[int, typer.Option(min=1, help="The most rows of a request.")]
Open = Annotated[bool, typer.Option("--open", help="Need no token; on this machine alone.")]


def serve(  # noqa: PLR0913  each is an option of the command
    run: Run,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    replicas: Replicas = 1,
    cpus: Cpus = 1,
    gpus: Gpus = 0,
    kept_mb: Kept = 256,
    request_mb: Largest = 8,
    rows: Rows = 4096,
    without_token: Open = False,
    address: Address = None,
) -> None:
    """Predict and adapt over HTTP, by the run's best model, until Ctrl-C."""
    console = plain_console(highlight=False, soft_wrap=True)
    signal.signal(signal.SIGTERM, _interrupt)
    console.print("starting Ray Serve ...")
    with raymtl.serve(
        run,
        host=host,
        port=port,
        address=address,
        replicas=replicas,
        cpus=cpus,
        gpus=gpus,
        kept_mb=kept_mb,
        request_mb=request_mb,
        rows=rows,
        open=without_token,
    ) as service:
        console.print(f"{service.url}: POST /predict and /adapt, GET /model, /health and /metrics")
        if service.token:
            console.print(f"Authorization: Bearer {service.token}", markup=False)
        console.print("Ctrl-C ends it.")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            console.print("ended")


def _interrupt(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt
