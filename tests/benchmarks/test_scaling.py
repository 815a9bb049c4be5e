"""The simulation behind docs/scaling.md: what it must come to where that can be said without it."""

import math
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.building import Building, by_builders, by_workers
from benchmarks.scaling import Constants, ask_s, printed, reduce_s, search, step, tables, written_s

FREE = Constants(ask_s=0, ask_s_a_trial=0, report_s=0, end_s=0)


@pytest.mark.parametrize(("trials", "slots"), [(12, 1), (12, 4), (13, 4), (3, 8)])
def test_instant_drivers_fill_the_slots(trials: int, slots: int) -> None:
    found = search(FREE, trials, slots, 60.0, 5, overhead_s=2.0)
    assert found.seconds == pytest.approx(math.ceil(trials / slots) * 62.0)
    assert found.driver_busy == 0


def test_instant_trials_leave_the_driver_alone() -> None:
    constants = Constants(ask_s=0.1, ask_s_a_trial=0.01, report_s=0.02, end_s=0.03)
    found = search(constants, 50, 10, 1e-9, 3, overhead_s=0.0)
    service = sum(ask_s(constants, number) for number in range(50)) + 50 * (3 * 0.02 + 0.03)
    assert found.seconds == pytest.approx(service)
    assert found.driver_busy == pytest.approx(1)


def test_more_slots_are_never_slower() -> None:
    """Busy shares are shares."""
    found = [search(Constants(), 300, slots, 30.0, 4, 0.5) for slots in (1, 2, 8, 64)]
    assert [one.seconds for one in found] == sorted((one.seconds for one in found), reverse=True)
    for one in found:
        assert 0 <= one.driver_busy <= 1
        assert 0 <= one.slots_busy <= 1


@pytest.mark.parametrize("gpus", [2, 8, 64, 512])
def test_all_reduce_of_a_ring(gpus: int) -> None:
    quick = Constants(latency_s=0)
    size = 4e6
    bandwidth = quick.intra_bytes_s if gpus <= 8 else quick.inter_bytes_s
    # Every GPU sends each of `gpus` parts on, but its own, once to add up and once to hand round.
    assert reduce_s(quick, gpus, size, size) == pytest.approx(
        2 * (gpus - 1) * (size / gpus) / bandwidth
    )
    assert reduce_s(quick, 1, size, size) == 0


def test_gradients_of_one_task_cost_what_losses_do() -> None:
    one = Constants(tasks=1)
    losses, gradients = (step(one, 64, gradients=gradients) for gradients in (False, True))
    assert gradients.seconds == pytest.approx(losses.seconds)
    assert losses.jacobian_bytes == 0
    many = Constants(tasks=40)
    assert step(many, 1, gradients=True).jacobian_bytes == pytest.approx(
        2 * 4 * 40 * many.parameters
    )


def test_rewriting_a_table_costs_its_sizes() -> None:
    assert written_s(3, 5, 2.0) == 2.0 * sum(3 * number for number in range(1, 6))


def test_the_document_holds_the_printed_tables() -> None:
    text = (Path(__file__).parent.parent.parent / "docs" / "scaling.md").read_text()
    assert printed(tables(Constants())) in text


def test_the_command_takes_other_constants() -> None:
    """It names wrong ones."""
    command = [sys.executable, "-m", "benchmarks.scaling", "--set"]
    own = subprocess.run([*command, "parameters=1e9"], capture_output=True, text=True, check=True)
    assert "| a checkpoint | 1,000,000,000 parameters | 12000 MB |" in own.stdout
    wrong = subprocess.run([*command, "parametres=1"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "expected NAME=VALUE with one of ask_s" in wrong.stderr


def test_builders_keep_up_as_far_as_their_number_goes() -> None:
    """Without chance and without Ray's own time, a step takes what the slower side takes."""
    plain = Building(varies=0, task_s=0, bytes_s=math.inf)
    for builders in (4, 8, 16, 32, 64):
        found = by_builders(plain, gpus=8, builders=builders, machines=4)
        built_s = plain.part_s * 8 / builders
        assert found.step_s == pytest.approx(max(plain.step_s, built_s), rel=1e-6)
        assert found.busy == pytest.approx(min(1, built_s / plain.step_s), rel=0.05)
    alone = by_workers(plain)
    assert alone.step_s == max(plain.step_s, plain.part_s)
    slow = Building(varies=0, bytes_s=math.inf, task_s=0.02)
    found = by_builders(slow, gpus=8, builders=64, machines=4)
    assert found.step_s == pytest.approx(64 * 0.02, rel=1e-3)
