"""The commands. Each validates everything that the user gave before anything is started."""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from raymtl import runs
from raymtl.config import Experiment, load
from raymtl.data import Arrays
from raymtl.progress import described
from raymtl.redact import redacted
from raymtl.types import DivergedError, UserError

app = typer.Typer(
    name="raymtl",
    help="Learn many tasks together, learn how to learn the next one, and search how.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

data_app = typer.Typer(
    help="Look at the data of a configuration, or fetch data that have a name.",
    no_args_is_help=True,
    add_completion=False,
)
app.add_typer(data_app, name="data")
cluster_app = typer.Typer(
    help="Write and check the files that start a cluster.", no_args_is_help=True, add_completion=False
)
app.add_typer(cluster_app, name="cluster")

Config = Annotated[Path, typer.Argument(help="A YAML configuration, such as tune_configs/quickstart.yaml.")]
Run = Annotated[Path, typer.Argument(help="A run folder, such as runs/quickstart.")]
Sets = Annotated[list[str], typer.Option("--set", help="Override a value by its dotted name: learner.inner_lr=0.05.")]
Address = Annotated[str | None, typer.Option(help="A running Ray cluster; else RAY_ADDRESS, else Ray starts here.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the newest run of this configuration.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the plan; start nothing.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def main() -> None:
    """Runs the command line; a user's mistake is one sentence and exit status 2."""
    try:
        app()
    except (UserError, DivergedError) as error:
        print(f"raymtl: {redacted(str(error))}", file=sys.stderr)
        sys.exit(2)


@app.command()
def tune(
    config: Config,
    sets: Sets = [],  # noqa: B006  (typer copies it)
    address: Address = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Search, train the winner on Ray Train workers, compare it with its baselines, write the report."""
    experiment = load(config, _overrides(sets))
    if not experiment.search:
        raise UserError(
            f"{config}: search: expected something to search, got nothing. Use `raymtl train`, or add domains."
        )
    if dry_run:
        _print_plan(experiment, as_json, searching=True)
        return
    _workflow().refuse(experiment, address, searching=True)
    arrays = _loaded(experiment)
    run = runs.latest(experiment, "tune") if resume else runs.create(experiment)
    _print_summary(_workflow().tune(experiment, run, arrays, address), run, as_json)


@app.command()
def train(
    config: Config,
    sets: Sets = [],  # noqa: B006
    address: Address = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> None:
    """Train one configuration on Ray Train workers, evaluate it, write the report."""
    experiment = load(config, _overrides(sets))
    if dry_run:
        _print_plan(experiment, as_json, searching=False)
        return
    _workflow().refuse(experiment, address, searching=False)
    arrays = _loaded(experiment)
    run = runs.latest(experiment, "train") if resume else runs.create(experiment)
    _print_summary(_workflow().train_run(experiment, run, arrays, address), run, as_json)


@app.command()
def evaluate(
    run: Run,
    split: Annotated[str, typer.Option(help="val or test.")] = "test",
    episodes: Annotated[int | None, typer.Option(min=2, help="Episodes; the configuration's own by default.")] = None,
    as_json: AsJson = False,
) -> None:
    """Score the run's best model on held-out episodes, before and after adaptation."""
    from raymtl.evaluate import evaluate as score
    from raymtl.evaluate import load_model

    if split not in ("val", "test"):
        raise UserError(f"--split: expected val or test, got '{split}'.")
    experiment, problem, params = load_model(runs.existing(run) / "best")
    metrics, _ = score(experiment, problem, params, experiment.data.load(), split=split, episodes=episodes)  # type: ignore[arg-type]
    if as_json:
        print(json.dumps(metrics, indent=2))
        return
    _print_scores([{"name": "best", "score": metrics["score"], "tasks": metrics["tasks"]}])
    kind = "transductive" if metrics["transductive"] else "not transductive"
    Console().print(f"{metrics['episodes']} {split} episodes, {kind}; +- is the 95 % interval over episodes.")


@app.command()
def adapt(
    run: Run,
    support: Annotated[
        Path | None, typer.Option(help="Examples: as the run's own files, or Parquet with `input` and one a task.")
    ] = None,
    query: Annotated[
        Path | None, typer.Option(help="What to predict; the rows of --support without a label by default.")
    ] = None,
    episode: Annotated[
        int, typer.Option(min=0, help="Without --support: which held-out test episode to adapt to.")
    ] = 0,
    steps: Annotated[int | None, typer.Option(min=0, help="Inner steps; the learner's own by default.")] = None,
    name: Annotated[
        str | None, typer.Option(help="Folder under RUN/adapted; made from the support set by default.")
    ] = None,
    transfer: Annotated[
        str | None, typer.Option(help="feature, model or target: to a task with a head of its own (docs/transfer.md).")
    ] = None,
    sets: Annotated[
        list[str], typer.Option("--set", help="A value of the transfer: task.kind=regression, optimiser.lr=0.01.")
    ] = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Adapt the run's best model to a new task; write the adapted model and its predictions."""
    from raymtl.adapt import adapt_run

    if support is not None and episode:
        raise UserError("--episode: expected either --support or --episode, got both. Leave one away.")
    if query is not None and support is None:
        raise UserError("--query: expected --support beside it, the examples to adapt to, got none. Add it.")
    if transfer is not None:
        if steps is not None:
            raise UserError("--steps: expected none with --transfer, which has --set optimiser.steps=N. Leave it away.")
        _transfer(runs.existing(run), transfer, _overrides(sets), support, query, episode, name, as_json)
        return
    if sets:
        raise UserError(f"--set: expected --transfer, whose values it sets, got {sets[0]} alone. Add --transfer.")
    written = adapt_run(runs.existing(run), support, episode, steps, name, query)
    if as_json:
        print(json.dumps(written, indent=2))
        return
    Console().print(f"adapted to {written['domain']} with {written['support_examples']} examples", highlight=False)
    if written["scores"]:
        table = Table(box=None, pad_edge=False)
        for column in ("metric", "before", "after"):
            table.add_column(column, justify="left" if column == "metric" else "right")
        for metric, (before, after) in written["scores"].items():
            table.add_row(metric, "-" if before is None else f"{before:.3f}", f"{after:.3f}")
        Console().print(table)
    Console().print(f"{written['folder']}: model.safetensors, predictions.parquet", highlight=False, soft_wrap=True)


def _transfer(
    run: Path,
    way: str,
    values: Mapping[str, Any],
    support: Path | None,
    query: Path | None,
    episode: int,
    name: str | None,
    as_json: bool,
) -> None:
    from raymtl.carry import transfer_run
    from raymtl.progress import View
    from raymtl.transfer import parse_transfer

    chosen = parse_transfer(way, values)
    with View(f"raymtl adapt --transfer {way}") as view:
        written = transfer_run(run, chosen, support, episode, name, view, query)
    if as_json:
        print(json.dumps(written, indent=2))
        return
    told = [f"{written['trained_on']} examples"]
    told += [f"step {written['step']} chosen by {written['held_out']} held-out ones"] if written["held_out"] else []
    console = Console(soft_wrap=True)
    console.print(f"{way} transfer to {written['domain']}: {', '.join(told)}", highlight=False)
    table = Table(box=None, pad_edge=False)
    for column in ("metric", "held out", "before", "after"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    parts = (written["validation"], *((written["test"] or {}).get(when) for when in ("before", "after")))
    for metric in next((part for part in parts if part), {}):
        table.add_row(metric, *(_figure(part and part[metric]) for part in parts))
    if table.rows:
        console.print(table)
    console.print(f"{written['folder']}: model.safetensors, predictions.parquet, scores.json", highlight=False)


@data_app.command("inspect")
def inspect_data(
    config: Config,
    sets: Sets = [],  # noqa: B006
    picture: Annotated[
        Path | None, typer.Option(help="Where the picture of a batch is written; OUTPUT/NAME-batch.png by default.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print what is in the data: columns, tasks, splits, balance, what is missing; draw a batch."""
    from raymtl.data.inspect import draw_batch
    from raymtl.data.inspect import inspect as look

    experiment = load(config, _overrides(sets))
    told, arrays = look(experiment.data, experiment.seed)
    path = picture or Path(experiment.output) / f"{experiment.name}-batch.png"
    draw_batch(experiment.data, arrays, experiment.seed, path)
    told["picture"] = str(path)
    if as_json:
        print(json.dumps(told, indent=2))
        return
    _print_data(told)


@data_app.command("fetch")
def fetch_data(
    name: Annotated[str, typer.Argument(help="mnist, omniglot, cifar100, voc2007 or nyuv2.")],
    root: Annotated[Path | None, typer.Option(help="Folder of the data; else $RAYMTL_DATA.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Fetch data that have a name, or check a copy that is there; says first what, how much and from where."""
    from raymtl.data.fetch import fetch, known, missing

    named = known().get(name)
    if named is None:
        raise UserError(f"NAME: expected one of {', '.join(known())}, got '{name}'.")
    folder = root or (Path(os.environ["RAYMTL_DATA"]) if os.environ.get("RAYMTL_DATA") else None)
    if folder is None:
        raise UserError("--root: expected the folder of the data, got none. Give it, or set RAYMTL_DATA.")
    folder = folder.expanduser()
    console = Console(highlight=False, soft_wrap=True)
    lacking = missing(named, folder)
    if not lacking:
        console.print(f"{name}: {', '.join(part.path for part in named.parts)} in {folder}: complete and right.")
        return
    archives = [archive for part in lacking for archive in part.archives]
    for archive in archives:
        size, where = f"{archive.num_bytes / 1e6:.2f} MB", " or ".join(archive.urls)
        console.print(f"{size:>10}  {where} (md5 {archive.md5})", markup=False)
    console.print(f"to {folder}: {', '.join(part.path for part in lacking)}\nlicence: {named.licence}", markup=False)
    if not yes:
        if not sys.stdin.isatty():
            raise UserError("--yes: expected it where nobody can be asked, got a standard input that is no terminal.")
        if not typer.confirm(f"Fetch {sum(archive.num_bytes for archive in archives) / 1e6:.1f} MB?"):
            raise typer.Exit(1)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bars: dict[str, TaskID] = {}

        def report(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what)
            progress.update(bars[what], completed=done, total=total or None)

        for part in lacking:
            progress.console.print(f"fetching {part.path}", markup=False)
            fetch(named, part, folder, report)
    console.print(f"{name} is in {folder}.", markup=False)


def _print_data(told: Mapping[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    if "columns" in told:
        console.print(f"{told['format']}, {told['rows']} rows{', streamed' if told['streamed'] else ''}")
        columns = Table(box=None, pad_edge=False, title="\nInputs", title_justify="left")
        for heading in ("column", "type", "role", "numbers", "missing", "normalised by, of the rows for training"):
            columns.add_column(
                heading, overflow="fold", justify="right" if heading in ("numbers", "missing") else "left"
            )
        for row in told["columns"]:
            missing = f"{row['missing']:.1%}"
            columns.add_row(row["column"], row["type"], row["role"], str(row["numbers"]), missing, row["normalised_by"])
        Console(highlight=False).print(columns)
        for name, why in told["left_out"].items():
            console.print(f"left out: {name} ({why})", markup=False)
        splits = ", ".join(f"{split} {rows}" for split, rows in told["splits"].items())
        console.print(f"\nSplit by {told['split_by']}: {splits} rows", markup=False)
        for what in ("groups", "classes"):
            if what in told:
                console.print(f"{what}: {', '.join(f'{split} {n}' for split, n in told[what].items())}")
    tasks = Table(box=None, pad_edge=False, title="\nTasks", title_justify="left")
    for heading in ("task", "kind", "missing", "split", "labelled", "balance"):
        tasks.add_column(heading, overflow="fold", justify="right" if heading in ("missing", "labelled") else "left")
    for name, task in told["tasks"].items():
        if "splits" not in task:
            tasks.add_row(name, task["kind"], "", "train", str(told["labelled_for_training"][name]), "")
            continue
        first = (name, f"{task['kind']}{' (inferred)' if task['inferred'] else ''}", f"{task['missing']:.1%}")
        for split, about in task["splits"].items():
            balance = ", ".join(f"{k} {v:.4g}" for k, v in list(about["balance"].items())[:12])
            tasks.add_row(*first, split, str(about["labelled"]), balance)
            first = ("", "", "")
    Console(highlight=False).print(tasks)
    episode = told["episode"]
    console.print(
        f"\nInputs of shape {told['input_shape']}. The first episode ({episode['domain']}): "
        f"{max(episode['support'].values())} examples of support, {max(episode['query'].values())} of query.",
        markup=False,
    )
    for note in told["notes"]:
        console.print(note, markup=False)
    console.print(told["picture"], markup=False)


@app.command()
def trials(
    run: Run,
    number: Annotated[int | None, typer.Argument(metavar="[ID]", help="One trial, in full.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the trials of a search, or show one."""
    rows = runs.read_rows(runs.existing(run) / "trials.parquet")
    if rows and not {"number", "state", "step"} <= set(rows[0]):
        raise UserError(f"{run / 'trials.parquet'}: expected the columns number, state and step, got {list(rows[0])}.")
    if not rows:
        raise UserError(f"{run}: expected a search with trials, got none yet. Start one with `raymtl tune`.")
    if number is not None:
        chosen = next((row for row in rows if row["number"] == number), None)
        if chosen is None:
            raise UserError(f"{run}: trial {number}: expected 0 to {rows[-1]['number']}, got {number}.")
        rows = [{key: value for key, value in chosen.items() if value is not None}]
    if as_json:
        print(json.dumps(rows if number is None else rows[0], indent=2))
        return
    if number is not None:
        for key, value in rows[0].items():
            Console().print(f"{key}: {value}", highlight=False)
        return
    _print_trials(rows, load(run / "config.yaml"))


@app.command()
def methods(
    section: Annotated[str | None, typer.Argument(help="sharing, weighting, learner or mode; all by default.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/methods.md.")] = False,
) -> None:
    """List what there is to choose from: what each method does, what it costs, when it helps."""
    from raymtl import methods as known

    if markdown:
        print(known.markdown(), end="")
        return
    if section is not None and section not in known.HEADINGS:
        raise UserError(f"section: expected one of {', '.join(known.HEADINGS)}, got '{section}'.")
    for name in [section] if section else known.HEADINGS:
        heading, about = known.HEADINGS[name]
        table = Table(box=None, pad_edge=False, title=f"\n{heading.replace('`', '')}", caption=about.replace("\n", " "))
        table.title_justify = table.caption_justify = "left"
        for column in ("name", "what it does", "cost", "when it helps"):
            table.add_column(column, overflow="fold")
        for row in known.methods(name):
            table.add_row(row.name, row.what, row.cost, row.helps)
        Console(highlight=False).print(table)


@app.command()
def report(run: Run) -> None:
    """Write the run's report.html again."""
    from raymtl.report import write_report

    print(write_report(runs.existing(run)))


@app.command()
def doctor(
    output: Annotated[Path, typer.Option(help="Where runs would be written.")] = Path("runs"),
    address: Address = None,
    config: Annotated[Path | None, typer.Option(help="A configuration: is there room for what it plans?")] = None,
    sets: Sets = [],  # noqa: B006
    as_json: AsJson = False,
) -> None:
    """Check what a run needs: versions, cores, memory, disk, and the cluster if there is one. Exit 1 on a failure."""
    from raymtl.cluster import doctor as examine

    if sets and config is None:
        raise UserError(f"--set: expected --config, whose values it sets, got {sets[0]} alone. Add --config.")
    checks = examine(output, address, load(config, _overrides(sets)) if config else None)
    if as_json:
        print(json.dumps([check._asdict() for check in checks], indent=2))
    else:
        table = Table(box=None, pad_edge=False)
        for column in ("", "check", "found", "what to do"):
            table.add_column(column, overflow="fold")
        marks = {True: "[green]ok[/]", None: "[yellow]look[/]", False: "[red]fails[/]"}
        for check in checks:
            table.add_row(marks[check.ok], check.name, check.found, "" if check.ok else check.advice)
        Console().print(table)
    if any(check.ok is False for check in checks):
        raise typer.Exit(1)


@cluster_app.command("render")
def cluster_render(
    target: Annotated[str, typer.Argument(help="aws, gcp, local or kuberay.")],
    sets: Annotated[
        list[str], typer.Option("--set", help="An answer, such as region=eu-central-1; else it asks.")
    ] = [],  # noqa: B006
    output: Annotated[Path | None, typer.Option(help="Where the file is written; else it is printed.")] = None,
) -> None:
    """Fill a shipped cluster file with your own values, keep its comments, and check it without asking any cloud."""
    from raymtl.cluster.audit import audit
    from raymtl.cluster.render import render

    if output is not None and output.exists():
        raise UserError(f"--output: expected a new file, got {output}, which exists. Choose another, or move it away.")
    given = dict(_assignment(text) for text in sets)
    text = render(target, given, _ask if sys.stdin.isatty() else None, Path.cwd())
    _refuse(audit(text, output or Path(target), Path.cwd()))
    if output is None:
        print(text, end="")
        return
    try:
        output.write_text(text)
    except OSError as error:
        raise UserError(f"--output: {output} cannot be written ({error.strerror}). Choose another.") from None
    print(output)


@cluster_app.command("check")
def cluster_check(
    file: Annotated[Path, typer.Argument(help="A file for `ray up`, or a RayJob for KubeRay.")],
) -> None:
    """Say what is wrong with a cluster file, Ray's own checks included; asks no cloud. Exit 2 where something is."""
    from raymtl.cluster.audit import audit

    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: cannot be read ({error}). Give a cluster file such as cluster.yaml.") from None
    _refuse(audit(text, file, Path.cwd()))
    print(f"{file}: nothing found")


def _ask(name: str, question: Any) -> str:
    """Asks until the answer will do."""
    from raymtl.cluster.render import refused

    while True:
        answer: str = typer.prompt(f"{question.ask} ({name})", err=True)
        why = refused(question, answer)
        if not why:
            return answer
        print(why, file=sys.stderr)


def _refuse(found: list[str]) -> None:
    """Ends with status 2, a line for each thing that was found."""
    for sentence in found:
        print(f"raymtl: {sentence}", file=sys.stderr)
    if found:
        raise typer.Exit(2)


def _workflow() -> Any:
    from raymtl import workflow  # importing Ray takes seconds that a mistyped key should not cost

    return workflow


def _assignment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"--set: expected key=value, got '{text}'.")
    return key, value


def _loaded(experiment: Experiment) -> Arrays:
    """The data; read before anything is started or made, for there may be something wrong with them."""
    with Console(stderr=True).status("reading the data"):
        return experiment.data.load()


def _overrides(sets: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in map(_assignment, sets):
        try:
            values[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"--set {key}: expected a YAML value, got '{value}'.") from None
    return values


def _print_summary(summary: Mapping[str, Any], run: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(summary, indent=2))
        return
    from raymtl.report import outcome, protocol, result_rows

    console = Console(soft_wrap=True)
    console.print()
    _print_scores(summary["models"])
    console.print(f"\n{outcome(result_rows(summary))} {protocol(summary)}", highlight=False)
    if "regret" in summary:
        about = summary["regret"]
        weights = ", ".join(f"{task} {weight:.2f}" for task, weight in about["best_weights"].items())
        console.print(
            f"\nRegret: {about['regret']:+.2f} summed over all steps ({about['loss_per_step']:.4f} a step, the best of "
            f"{len(about['fixed_loss_per_step'])} fixed weights, {weights}: "
            f"{about['fixed_loss_per_step'][about['best']]:.4f}).",
            highlight=False,
        )
    where = os.path.relpath(run) if run.absolute().is_relative_to(Path.cwd()) else run
    console.print(
        f"\n{summary['seconds']:.0f} s; training waited for data {summary['data_wait_pct']:.1f} % of its time. "
        f"Open {where}/report.html; next: raymtl adapt {where}",
        highlight=False,
    )


def _print_scores(models: list[dict[str, Any]]) -> None:
    """One column a model, its first in two: before and after adaptation."""
    best = models[0]
    table = Table(box=None, pad_edge=False)
    table.add_column("held-out test" if len(models) > 1 else "", no_wrap=True)
    for heading in (f"{best['name']}\nbefore", f"{best['name']}\nadapted", *(f"{m['name']}\n" for m in models[1:])):
        table.add_column(heading, justify="right", no_wrap=True)
    metrics = [(task, metric) for task, scores in best["tasks"].items() for metric in scores]
    for task, metric in metrics:
        scores = [model["tasks"][task][metric] for model in models]
        table.add_row(f"{task} {metric}", _mean(scores[0]["before"]), *(_figure(score["after"]) for score in scores))
    totals = [model["score"] or {} for model in models]
    table.add_row("score", _mean(totals[0].get("before")), *(_figure(total.get("after")) for total in totals))
    for key, better in (("delta_m", "lower"), ("delta_p", "higher")):
        if best.get(key) is not None:
            table.add_row(f"{key} % ({better})", "", *(f"{round(model[key], 1) or 0.0:+.1f}" for model in models))
    Console(width=max(100, Console().width)).print(table)


def _mean(value: Mapping[str, float] | None) -> str:
    return f"{value['mean']:.3f}" if value else "-"


def _figure(value: Mapping[str, float] | None) -> str:
    return f"{value['mean']:.3f}±{value['ci95']:.3f}" if value else "-"


def _print_trials(rows: list[dict[str, Any]], experiment: Experiment) -> None:
    metrics = experiment.tune.metrics
    table = Table(box=None, pad_edge=False)
    for column in ("trial", "state", "step", *metrics):
        table.add_column(column, justify="left" if column == "state" else "right", no_wrap=True)
    table.add_column("values", overflow="fold")
    for row in rows:
        scores = ("" if row.get(metric) is None else f"{row[metric]:.5g}" for metric in metrics)
        values = described(row, experiment.search)
        table.add_row(str(row["number"]), row["state"], str(row["step"]), *scores, row.get("reason") or values)
    Console(highlight=False).print(table)


def _print_plan(experiment: Experiment, as_json: bool, *, searching: bool) -> None:
    train_settings, settings = experiment.train, experiment.tune
    content: dict[str, Any] = {
        "run": str(Path(experiment.output) / experiment.name),
        "train": {
            "workers": train_settings.workers,
            **({"min_workers": train_settings.min_workers} if train_settings.min_workers else {}),
            "cpus_per_worker": train_settings.cpus_per_worker,
            "steps": train_settings.steps,
            "episodes_per_step": train_settings.meta_batch,
            "num_parameters": sum(v.numel() for v in experiment.build().init_params().values()),
        },
    }
    if experiment.stages:
        content["train"]["steps_of_stages"] = [part.experiment.train.steps for part in experiment.parts()]
    if searching:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        each = settings.workers_per_trial * settings.cpus_per_trial
        here = max(0, min(int(cores / each), settings.trials))
        content["search"] = {
            "trials": settings.trials,
            "objectives": dict(zip(settings.metrics, settings.modes, strict=True)),
            "concurrency": here if settings.concurrency == "auto" else min(here, settings.concurrency),
            "concurrency_of": f"{cores} CPU of this machine",
            "cpus_per_trial": each,
            "workers_per_trial": settings.workers_per_trial,
            "asha": settings.asha.model_dump() if settings.asha else None,
            "space": {key: domain.model_dump(exclude_defaults=True) for key, domain in experiment.search.items()},
        }
    if as_json:
        print(json.dumps(content, indent=2))
    else:
        print(yaml.safe_dump(json.loads(json.dumps(content)), sort_keys=False).rstrip())
