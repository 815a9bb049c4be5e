"""Tells Ray about the notice that a cloud gives before it takes back a spot machine.

`python3 -m raymtl.distributed.preemption aws` (or gcp) runs beside Ray on the workers of the
shipped cluster files, because the cloud notifies only the machine itself. Ray then starts nothing
more on the machine, and trainings there write a checkpoint at once.
"""

import json
import logging
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime

logger = logging.getLogger("raymtl")

LOOK_S = 2.0
ANSWER_S = 5.0
GCP_S = 30.0
"""What Google Cloud leaves between the notice and the end; AWS tells the time itself, of two
minutes.
"""


def aws(base: str = "http://169.254.169.254") -> float | None:
    """Seconds until AWS takes back the machine; None if there is no notice.

    It reads `spot/instance-action` of the EC2 instance metadata, version 2. Raises OSError if they
    cannot be reached.
    """
    token = _get(f"{base}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
    action = _get(
        f"{base}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token or ""}
    )
    if action is None:
        return None
    at = datetime.fromisoformat(json.loads(action)["time"])
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


def gcp(base: str = "http://metadata.google.internal") -> float | None:
    """The same for Google Cloud, from `instance/preempted`."""
    preempted = _get(f"{base}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"})
    if preempted == "TRUE":
        return GCP_S
    return None


CLOUDS: dict[str, Callable[[], float | None]] = {"aws": aws, "gcp": gcp}


def _get(url: str, headers: dict[str, str], method: str = "GET") -> str | None:
    """What stands there; None where nothing does."""
    # Not through a proxy, which the address is none of.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(
            urllib.request.Request(url, headers=headers, method=method), timeout=ANSWER_S
        ) as answer:
            text: str = answer.read().decode().strip()
            return text
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return None
        raise


def watch(ask: Callable[[], float | None], tell: Callable[[float], None]) -> None:
    """Asks repeatedly until there is a notice, and passes it on. Failed requests are retried."""
    while True:
        try:
            left = ask()
        except (OSError, ValueError, KeyError) as error:
            logger.warning("the cloud did not answer: %s", error)
            left = None
        if left is not None:
            tell(left)
            return
        time.sleep(LOOK_S)


def drain(seconds: float) -> None:
    """Tells Ray that this machine will be taken back after so many seconds."""
    import ray

    from raymtl.internals import ray as ray_internals

    ray.init(address="auto", logging_level=logging.ERROR, log_to_driver=False)
    accepted, reason = ray_internals.report_preemption(seconds)
    if accepted:
        outcome = "told"
    else:
        outcome = f"Ray refuses to hear it ({reason})"
    print(f"taken in {seconds:.0f} s: {outcome}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in CLOUDS:
        sys.exit(f"expected one of {', '.join(CLOUDS)}, got {' '.join(sys.argv[1:]) or 'nothing'}.")
    watch(CLOUDS[sys.argv[1]], drain)
