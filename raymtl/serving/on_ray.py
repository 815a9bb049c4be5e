"""The service on Ray Serve: a gateway, and processes that hold the model behind it."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle
from starlette.applications import Starlette

from raymtl.serving.describe import describe
from raymtl.serving.http_api import MEBI, HttpApi
from raymtl.serving.messages import Answer, Query, Support, refused
from raymtl.serving.served_model import ServedModel
from raymtl.serving.settings import TOKEN_VARIABLE, ServeSettings, token_of_environment
from raymtl.types import UserError

RETRY_S = 0.2
"""How long to wait for another process where the one that was asked has ended."""
T = TypeVar("T")
R = TypeVar("R")


class ModelProcess:
    """A process with the model. Requests that come together are computed together."""

    def __init__(self, values: dict[str, Any]) -> None:
        settings = ServeSettings(**values)
        device = "cuda" if settings.gpus else "cpu"
        torch.set_num_threads(max(1, int(settings.cpus)))
        self._served = ServedModel(Path(settings.run), settings.kept_mb * MEBI, device)
        self._thread = ThreadPoolExecutor(max_workers=1)
        batches: tuple[Any, ...] = (self.predict, self.adapt)
        for batched in batches:
            batched.set_max_batch_size(settings.batch)
            batched.set_batch_wait_timeout_s(settings.wait_ms / 1000)

    @serve.batch
    async def predict(self, queries: list[Query]) -> list[Answer]:
        """Of each query the predictions."""
        return await self._run(self._served.predict, queries)

    @serve.batch
    async def adapt(self, supports: list[Support]) -> list[Answer]:
        """Of each support set the handle."""
        return await self._run(self._served.adapt, supports)

    async def describe(self) -> Answer:
        """What the model is."""
        return Answer(200, describe(self._served.trained))

    async def _run(self, function: Callable[[T], R], argument: T) -> R:
        """In the one thread of the model, so that the process still answers Ray."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, argument)


class OnRay:
    """The processes with the model, as the gateway sees them."""

    def __init__(self, handle: DeploymentHandle[ModelProcess]) -> None:
        self._handle = handle

    async def predict(self, query: Query) -> Answer:
        """The predictions for some rows."""
        return await self._asked(self._handle.predict.remote, query)

    async def adapt(self, support: Support) -> Answer:
        """A handle of the model that was adapted."""
        return await self._asked(self._handle.adapt.remote, support)

    async def describe(self) -> Answer:
        """What the model is."""
        return await self._asked(self._handle.describe.remote)

    async def _asked(self, ask: Callable[..., Awaitable[Answer]], *message: Any) -> Answer:
        """Asks again where the process ends before it answers."""
        while True:
            try:
                return await ask(*message)
            except BackPressureError:
                return refused("too many requests wait. Come again.", 503)
            except RayActorError:
                await asyncio.sleep(RETRY_S)


@serve.ingress()
class Gateway:
    """Takes requests, and passes them on to the processes with the model."""

    def __init__(self, models: DeploymentHandle[ModelProcess], values: dict[str, Any]) -> None:
        settings = ServeSettings(**values)
        token = None
        if not settings.open:
            token = settings.token or token_of_environment()
            if not token:
                raise UserError(
                    f"token: expected one in the settings or in the variable {TOKEN_VARIABLE}, got "
                    "none. Set it, or `open: true` where everyone may ask."
                )
        self._api = HttpApi(OnRay(models), settings, token)

    def __serve_build_asgi_app__(self) -> Starlette:
        """What Ray Serve calls to get the application."""
        return self._api.app()


def build(settings: ServeSettings) -> serve.Application:
    """The application of a Ray Serve config: `import_path: raymtl.serving.on_ray:build`."""
    values = settings.model_dump()
    models = serve.deployment(
        num_replicas=settings.replicas,
        max_ongoing_requests=2 * settings.batch,
        max_queued_requests=settings.queue,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        health_check_period_s=2,
    )(ModelProcess)
    gateway = serve.deployment(
        max_ongoing_requests=settings.queue, ray_actor_options={"num_cpus": 0}
    )(Gateway)
    application: serve.Application = gateway.bind(models.bind({**values, "token": None}), values)
    return application
