"""Many requests at once are answered as each alone, and as the commands answer files."""

import base64
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import raymtl
from raymtl.serving.describe import describe
from raymtl.serving.messages import MISSING, Answer, Query
from raymtl.serving.request_body import query_of, support_of
from raymtl.serving.served_model import ServedModel
from tests.adaptation.test_new_rows import TASKS, flats, trained
from tests.data.own import write_csv, write_scenes

PLENTY = 1e9


def rows_of(columns: dict[str, list[Any]], *left_out: str) -> list[dict[str, Any]]:
    names = [name for name in columns if name not in left_out]
    return [
        dict(zip(names, row, strict=True)) for row in zip(*map(columns.get, names), strict=True)
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    write_csv(root / "flats.csv", flats())
    return trained(root / "run", {"path": str(root / "flats.csv"), "tasks": TASKS})


LABELLED = rows_of(flats(40, seed=1))
BARE = rows_of(flats(40, seed=1), *TASKS)


def query(start: int, end: int, handle: str | None = None) -> Query:
    return query_of({"rows": BARE[start:end], "model": handle}, 100)


def same(one: Sequence[Answer], other: Sequence[Answer]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.status == b.status
        rows, others = a.content.get("predictions", []), b.content.get("predictions", [])
        assert len(rows) == len(others)
        for row, expected in zip(rows, others, strict=True):
            assert row == {
                name: pytest.approx(value, rel=1e-4, abs=1e-6)
                if isinstance(value, float)
                else value
                for name, value in expected.items()
            }


def test_answers_are_the_commands(run: Path, tmp_path: Path) -> None:
    (answer,) = ServedModel(run, PLENTY).predict([query(0, 7)])
    path = tmp_path / "asked.parquet"
    pq.write_table(pa.Table.from_pylist(BARE[:7]), path)
    expected = raymtl.predict(run, path).to_pylist()
    for row, other in zip(answer.content["predictions"], expected, strict=True):
        for task in TASKS:
            assert row[task] == other[f"{task}.after"]
        assert row["state.probability.good"] == other["state.probability.good"]
        assert not any(name.endswith((".target", ".before")) for name in row)


def test_adapted_answers_are_the_models(run: Path, tmp_path: Path) -> None:
    served = ServedModel(run, PLENTY)
    support = support_of({"rows": LABELLED[:20], "steps": 3}, 100)
    (adapted,) = served.adapt([support])
    assert (adapted.status, adapted.content["examples"]) == (200, 20)
    (answer,) = served.predict([query(20, 30, support.handle)])
    (before,) = served.predict([query(20, 30)])
    labelled, bare = tmp_path / "s.parquet", tmp_path / "q.parquet"
    pq.write_table(pa.Table.from_pylist(LABELLED[:20]), labelled)
    pq.write_table(pa.Table.from_pylist(BARE[20:30]), bare)
    table = raymtl.load_model(run).adapt(labelled, steps=3).predict(bare)
    rents = [row["rent"] for row in answer.content["predictions"]]
    assert rents == pytest.approx(table["rent.after"].to_pylist(), rel=1e-5)
    assert rents != pytest.approx([row["rent"] for row in before.content["predictions"]], rel=1e-3)


def test_together_is_as_alone(run: Path) -> None:
    supports = [support_of({"rows": LABELLED[n : n + 10]}, 100) for n in range(0, 30, 10)]
    supports.append(support_of({"rows": LABELLED[:7], "steps": 2}, 100))
    together, alone = ServedModel(run, PLENTY), ServedModel(run, PLENTY)
    assert together.adapt(supports) == [alone.adapt([support])[0] for support in supports]
    queries = [query(30, 32), query(32, 33, supports[0].handle), query(31, 36, supports[1].handle)]
    queries += [query(35, 36, supports[0].handle), query(33, 34, supports[3].handle), query(36, 37)]
    same(together.predict(queries), [alone.predict([each])[0] for each in queries])


def test_a_mistake_is_of_its_request_alone(run: Path) -> None:
    served = ServedModel(run, PLENTY)
    lacking = query_of({"rows": rows_of(flats(2, seed=1), "city", *TASKS)}, 100)
    mixed = query_of({"rows": [{**BARE[0], "city": 3}, BARE[1]]}, 100)
    unknown = query_of({"rows": [{**BARE[0], "city": "Rom"}]}, 100)
    answers = served.predict([query(0, 2), lacking, mixed, unknown, query(2, 3)])
    assert [answer.status for answer in answers] == [200, 422, 422, 422, 200]
    for answer, said in zip(answers[1:4], ("'city'", "'city'", "Rom"), strict=True):
        assert said in answer.content["error"] and "/" not in answer.content["error"]
    same([answers[0], answers[4]], served.predict([query(0, 2), query(2, 3)]))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (BARE[:3], "expected rows with labels"),
        ([{**LABELLED[0], "state": "new"}], "new"),
        ([{**LABELLED[0], "rent": "much"}], "rent"),
    ],
)
def test_supports_that_do_not_fit(run: Path, rows: list[dict[str, Any]], said: str) -> None:
    served = ServedModel(run, PLENTY)
    good = support_of({"rows": LABELLED[:5]}, 100)
    bad, answer = served.adapt([support_of({"rows": rows}, 100), good])
    assert (bad.status, answer.status) == (422, 200)
    assert said in bad.content["error"]


def test_what_does_not_fit_is_forgotten_and_learned_again(run: Path) -> None:
    supports = [support_of({"rows": LABELLED[n : n + 10]}, 100) for n in range(0, 30, 10)]
    served = ServedModel(run, 1)  # a byte: only the last model is kept
    for support in supports:
        served.adapt([support])
    queries = [query(30, 31, support.handle) for support in supports]
    assert served.predict(queries)[:2] == [MISSING, MISSING]
    plenty = ServedModel(run, PLENTY)
    plenty.adapt(supports)
    again = [
        served.predict([each._replace(support=support)])[0]
        for each, support in zip(queries, supports, strict=True)
    ]
    same(again, plenty.predict(queries))


def test_classes_of_ones_own_are_named(tmp_path: Path) -> None:
    """Prototypes of classes that the run never saw, of two requests with other names."""
    centres = {f"kind {k}": 4.0 * k for k in range(12)}
    names = [name for name in centres for _ in range(8)]
    content = {"thing": names, "a": [centres[n] + 0.1 * i for i, n in enumerate(names)]}
    write_csv(tmp_path / "things.csv", {**content, "b": [0.5 * i for i in range(96)]})
    data = {"path": str(tmp_path / "things.csv"), "tasks": {"thing": {}}, "episodes": "classes"}
    folder = trained(tmp_path / "run", {**data, "ways": 2}, learner={"name": "protonet"})
    served = ServedModel(folder, PLENTY)
    (refusal,) = served.predict([query_of({"rows": [{"a": 1, "b": 1}]}, 9)])
    assert refusal.status == 422 and "Call /adapt first" in refusal.content["error"]
    supports = [
        support_of(
            {"rows": [{"thing": one, "a": 0.0, "b": 1.0}, {"thing": two, "a": 90.0, "b": 1.0}]}, 9
        )
        for one, two in (("elf", "orc"), ("orc", "elf"))
    ]
    answers = served.adapt(supports)
    assert [answer.content["classes"] for answer in answers] == [{"thing": ["elf", "orc"]}] * 2
    asked = [{"a": 1.0, "b": 1.0}]
    predicted = served.predict([query_of({"rows": asked, "model": s.handle}, 9) for s in supports])
    assert [answer.content["predictions"][0]["thing"] for answer in predicted] == ["elf", "orc"]


def test_pictures_come_in_base64(tmp_path: Path) -> None:
    root = write_scenes(tmp_path / "scenes", 20)
    for other in ("masks", "depths", "normals"):
        shutil.rmtree(root / other)
    data = {"path": str(root), "size": (12, 16), "tasks": {"larger": {}}}
    folder = trained(tmp_path / "run", data, encoder={"name": "conv", "channels": [4]})
    served = ServedModel(folder, PLENTY)
    files = sorted((root / "images").iterdir())[:6]
    rows = [{"picture": base64.b64encode(file.read_bytes()).decode()} for file in files]
    (answer,) = served.predict([query_of({"rows": rows}, 9)])
    expected = raymtl.predict(folder, root / "images").to_pylist()[:6]
    said = [row["larger.probability.box"] for row in answer.content["predictions"]]
    assert said == pytest.approx([row["larger.probability.box"] for row in expected], rel=1e-5)
    support = support_of({"rows": [{**row, "larger": "box"} for row in rows], "steps": 9}, 9)
    assert served.adapt([support])[0].content["examples"] == 6
    (after,) = served.predict([query_of({"rows": rows, "model": support.handle}, 9)])
    for row, before in zip(after.content["predictions"], said, strict=True):
        assert row["larger.probability.box"] > before
    broken = [rows[0], {"picture": base64.b64encode(b"no picture").decode()}]
    for wrong, word in ((broken, "expected 2 rows"), ([{"picture": "&"}], "base64")):
        (refusal,) = served.predict([query_of({"rows": wrong}, 9)])
        assert refusal.status == 422 and word in refusal.content["error"]


def test_other_runs_take_numbers(tmp_path: Path) -> None:
    folder = trained(tmp_path / "run", {"name": "sinusoid"})
    served = ServedModel(folder, PLENTY)
    assert describe(served.trained)["cells"] == {"input": "numbers of the shape [1], row-major"}
    (answer,) = served.predict([query_of({"rows": [{"input": [0.5]}, {"input": [1.0]}]}, 9)])
    assert len(answer.content["predictions"]) == 2
    (refusal,) = served.predict([query_of({"rows": [{"input": [1, 2]}]}, 9)])
    assert refusal.status == 422 and "list of 1 numbers" in refusal.content["error"]


def test_the_model_is_described(run: Path) -> None:
    told = describe(ServedModel(run, PLENTY).trained)
    assert told["cells"] == {"size (m2)": "number", "city": "category"} | {
        name: told["cells"][name] for name in told["cells"] if name == "landlord"
    }
    kinds = {task["name"]: (task["kind"], task["classes"]) for task in told["tasks"]}
    assert kinds["rent"] == ("regression", [])
    assert kinds["state"] == ("classification", ["poor", "fair", "good"])
    assert (told["inner_steps"], told["needs_support"]) == (1, False)
