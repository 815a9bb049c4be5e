"""Several real hosts on one machine, and raymtl's cluster on them, launched as clusters/local.yaml says."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from raymtl.storage import formats

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("hosts.sh")
TOOLS = ("ip", "bridge", "sshd", "ssh", "rsync", "nsenter", "unshare", "setpriv")
HEAD, FIRST_WORKER = 1, 2
NUM_HOSTS = 3
SHARED = "/srv/shared"
SHARED_SIZE = "256m"
MEMORY = "5g"
MEMORY_CGROUP = Path("/sys/fs/cgroup/memory")
ADDRESS = "10.77.0.{}"


def missing() -> str | None:
    """Why there can be no hosts here; None where there can."""
    if os.geteuid() != 0:
        return "hosts of their own need root"
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    absent = [tool for tool in TOOLS if not shutil.which(tool, path=path)]
    if absent:
        return f"{', '.join(absent)} is not here: apt-get install iproute2 openssh-server rsync"
    if not Path("/sys/fs/cgroup/freezer").is_dir():
        return "no freezer of cgroups, version 1, is mounted at /sys/fs/cgroup"
    return None


class Hosts:
    """A driver (host 0) and `NUM_HOSTS` machines, each with its own network, processes and files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        python = Path(sys.prefix)
        base = Path(sys.base_prefix)
        shares = [f"{python}::ro", f"{base}::ro", f"{ROOT}::ro", f"{folder}/shared:{SHARED}"]
        self.environment = {
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
            "HOME": os.environ.get("HOME", "/root"),
            "HOSTS_DIR": str(folder),
            "HOSTS_VENV": str(python),
            "HOSTS_SHARE": " ".join(shares),
            "HOSTS_PFX": f"rm{os.getpid() % 1000}",
            "HOSTS_MEM": MEMORY if MEMORY_CGROUP.is_dir() else "",
        }

    def __call__(self, *arguments: str, check: bool = True, timeout: float = 120) -> str:
        """Runs hosts.sh; returns what it prints. Raises AssertionError with all of it where it fails."""
        done = subprocess.run(
            ["bash", str(SCRIPT), *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            cwd="/",
        )
        assert not check or done.returncode == 0, (
            f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done.stdout

    def up(self) -> None:
        self.shared.mkdir()
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={SHARED_SIZE}", "tmpfs", str(self.shared)],
            check=True,
        )
        self("up", str(NUM_HOSTS))

    def down(self) -> None:
        self("down", check=False)
        subprocess.run(["umount", "--lazy", str(self.shared)], check=True)

    @contextmanager
    def storage_full(self) -> Iterator[None]:
        """No byte more can be written to the shared folder."""
        filler = self.shared / "filler"
        try:
            with (
                filler.open("wb", buffering=0) as file,
                suppress(OSError),
            ):  # it is full, or others were faster
                while True:
                    file.write(b"0" * 4096)
            yield
        finally:
            filler.unlink()

    @contextmanager
    def storage_away(self) -> Iterator[None]:
        """What is on the shared folder is out of reach of every host; what is open stays so."""
        hosts = range(HEAD, HEAD + NUM_HOSTS)
        for host in hosts:
            self.sh(host, f"mount -t tmpfs -o ro tmpfs {SHARED}")
        try:
            yield
        finally:
            for host in hosts:
                self.sh(host, f"umount {SHARED}")

    def sh(self, host: int, text: str, *, check: bool = True, timeout: float = 120) -> str:
        """What a command prints on a host, in its login environment."""
        return self("exec", str(host), "bash", "-lc", text, check=check, timeout=timeout)

    def start(self, host: int, text: str, log: str) -> "subprocess.Popen[bytes]":
        """Starts a command on a host and does not wait; its output goes to a file in its home."""
        return subprocess.Popen(
            ["bash", str(SCRIPT), "exec", str(host), "bash", "-lc", f"{text} > ~/{log} 2>&1"],
            env=self.environment,
            cwd="/",
            start_new_session=True,
        )

    def is_off(self, host: int) -> bool:
        """Whether the host has been killed and not started again."""
        line = next(each for each in self("status").splitlines() if each.split()[0] == str(host))
        return line.split()[2] == "off"

    def home(self, host: int) -> Path:
        """The home of the user on a host, as it is called here."""
        return self.folder / f"h{host}" / "root"

    @property
    def shared(self) -> Path:
        """The folder that all hosts see as SHARED, as it is called here."""
        return self.folder / "shared"


class Cluster:
    """raymtl's cluster on the hosts, launched from the driver with `ray up`."""

    def __init__(self, hosts: Hosts) -> None:
        self.hosts = hosts
        self.up_s = 0.0
        self.runs: list[Run] = []

    def configure(self) -> None:
        """Fills clusters/local.yaml in for these hosts, on the driver.

        What it would install is here already, so that setup command alone is another one.
        """
        text = (ROOT / "clusters" / "local.yaml").read_text()
        for placeholder, value in {
            "HEAD_ADDRESS": ADDRESS.format(10 + HEAD),
            "FIRST_WORKER_ADDRESS": ADDRESS.format(10 + FIRST_WORKER),
            "SECOND_WORKER_ADDRESS": ADDRESS.format(10 + FIRST_WORKER + 1),
            "USER": "root",
            "PRIVATE_KEY_FILE": "/root/.ssh/id_ed25519",
            "INTERFACE": "eth0",
        }.items():
            text = text.replace(f"REPLACE_WITH_{placeholder}", value)
        tree: dict[str, Any] = yaml.safe_load(text)
        assert "REPLACE_WITH" not in str(tree)
        first, _, install = tree["setup_commands"]
        assert "pip install" in install
        assert "raymtl-venv/bin:$PATH" in first
        tree["setup_commands"] = [
            first.replace("$HOME/raymtl-venv", sys.prefix).replace(
                "RAY_USAGE_STATS_ENABLED=0",
                "RAY_USAGE_STATS_ENABLED=0 PYTHONPATH=$HOME/raymtl OMP_NUM_THREADS=1",
            ),
            ". ~/raymtl.env && cd ~/raymtl && python3 -c 'import raymtl.cli'",
        ]
        file = self.hosts.home(0) / "local.yaml"
        file.write_text(yaml.safe_dump(tree))
        self.hosts.sh(
            0,
            "umask 077; mkdir -p ~/.ray; head -c 32 /dev/urandom | od -An -tx1 | tr -d ' \\n' > ~/.ray/raymtl_token",
        )

    def up(self) -> None:
        """`ray up`, and waits until all hosts have joined."""
        start = time.monotonic()
        self.hosts.sh(
            0, f"cd {ROOT} && RAY_UP_enable_autoscaler_v2=0 ray up -y ~/local.yaml", timeout=300
        )
        self.wait_for_nodes(NUM_HOSTS)
        self.up_s = time.monotonic() - start

    def restore(self) -> None:
        """Ends the runs that a failed test has left, and starts the hosts that it has left off."""
        for run in self.runs:
            run.end()
        self.runs.clear()
        lost = [host for host in range(HEAD + 1, HEAD + NUM_HOSTS) if self.hosts.is_off(host)]
        for host in lost:
            self.hosts("start", str(host))
        if lost:
            self.wait_for_nodes(NUM_HOSTS)

    def down(self) -> None:
        self.hosts.sh(0, f"cd {ROOT} && ray down -y ~/local.yaml", timeout=120)

    def on_head(self, text: str, *, check: bool = True, timeout: float = 300) -> str:
        """What a command prints on the head, in the environment that clusters/local.yaml makes there."""
        return self.hosts.sh(
            HEAD, f". ~/raymtl.env && cd ~/raymtl && {text}", check=check, timeout=timeout
        )

    def begin(self, command: str, output: str, *sets: str, resume: bool = False) -> "Run":
        """Starts `raymtl COMMAND` on the head, on tests/cluster/faults.yaml, and does not wait."""
        return self.started(
            quoted(*self.raymtl(command, output, *sets), *(["--resume"] if resume else [])), output
        )

    def raymtl(self, command: str, output: str, *sets: str) -> list[str]:
        """The words of `raymtl COMMAND` on tests/cluster/faults.yaml."""
        if not (self.hosts.shared / "faults.yaml").exists():
            shutil.copy(ROOT / "tests" / "cluster" / "faults.yaml", self.hosts.shared)
        words = ["python3", "-m", "raymtl", command, f"{SHARED}/faults.yaml", "--address", "auto"]
        for value in (f"output={SHARED}/{output}", *sets):
            words += ["--set", value]
        return words

    def started(self, text: str, output: str) -> "Run":
        """A command on the head, started, whose run folder will be `output/faults` on the shared folder."""
        home = self.hosts.home(HEAD)
        log = f"{output}.{len(list(home.glob(f'{output}.*.log')))}.log"
        process = self.hosts.start(HEAD, f". ~/raymtl.env && exec {text}", log)
        self.runs.append(Run(self, process, self.hosts.shared / output / "faults", home / log))
        return self.runs[-1]

    def kill(self, host: int, pattern: str) -> int:
        """SIGKILL to the newest process of a host whose command line has the pattern; 0 if there was none."""
        out = self.hosts.sh(
            host, f"pkill -KILL --newest --full {shlex.quote(pattern)} && echo 1 || echo 0"
        )
        return int(out)

    def give_notice(self, host: int, seconds: int) -> None:
        """Has a host tell Ray that it will be taken after so long, as raymtl.distributed.preemption does where a cloud says so."""
        told = self.hosts.sh(
            host,
            f". ~/raymtl.env && python3 -c 'from raymtl.distributed.preemption import drain; drain({seconds})'",
        )
        assert told == f"taken in {seconds} s: told\n"

    def hosts_of(self, pattern: str) -> list[int]:
        """Where such processes are."""
        return [
            host
            for host in range(HEAD, HEAD + NUM_HOSTS)
            if self.hosts.sh(
                host, f"pgrep --full {shlex.quote(pattern)} | wc -l", check=False
            ).strip()
            not in ("", "0")
        ]

    def alive(self) -> int:
        """How many nodes Ray has."""
        out = self.on_head(
            "python3 - <<'PY'\nimport ray\nray.init(address='auto', logging_level='ERROR', log_to_driver=False)\n"
            "print(sum(n['Alive'] for n in ray.nodes()))\nPY",
            check=False,
        )
        lines = out.strip().splitlines()
        return int(lines[-1]) if lines and lines[-1].isdigit() else 0

    def wait_for_nodes(self, number: int, timeout: float = 240) -> None:
        until(lambda: self.alive() == number, f"{number} nodes", timeout)


class Run:
    """A command on the head, and the run folder that it writes."""

    def __init__(
        self, cluster: Cluster, process: "subprocess.Popen[bytes]", folder: Path, log: Path
    ) -> None:
        self.cluster, self.process, self.folder, self.log = cluster, process, folder, log

    def step(self, model: str = "best") -> int:
        """The step of the newest checkpoint of a model folder."""
        found = [
            int(path.name[5:]) for path in (self.folder / model / "checkpoints").glob("step_*")
        ]
        return max(found, default=0)

    def reach(self, step: int, model: str = "best", timeout: float = 240) -> None:
        def there() -> bool:
            assert self.process.poll() is None, f"ended early:\n{self.told}"
            return self.step(model) >= step

        until(there, f"step {step} of {model}", timeout, every=0.1)

    def trials_ended(self) -> int:
        """How many the table of trials counts as complete."""
        rows = formats.read_rows(self.folder / "trials.parquet")
        return sum(row["state"] == "complete" for row in rows)

    def finish(self, timeout: float = 400) -> None:
        """Waits for its end. Raises AssertionError with what it printed where that is no success."""
        assert self.process.wait(timeout) == 0, self.told
        assert (self.folder / "summary.json").exists()

    def end(self) -> None:
        """SIGTERM, where it still goes on."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            self.process.wait(60)

    @property
    def told(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


def until(true: Callable[[], bool], what: str, timeout: float, every: float = 1.0) -> float:
    """Seconds until it is true. Raises AssertionError after `timeout`."""
    start = time.monotonic()
    while not true():
        assert time.monotonic() - start < timeout, f"expected {what} within {timeout:g} s"
        time.sleep(every)
    return time.monotonic() - start


def quoted(*words: str) -> str:
    """As a shell reads them."""
    return shlex.join(words)
