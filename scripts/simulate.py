# SPDX-License-Identifier: Apache-2.0
"""`kfloop simulate`: the closed loop over months of the past, beside two that do not decide."""

import itertools
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date, timedelta
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from kfloop.components.contracts.errors import InputError
from kfloop.components.contracts.files import write_json, write_text
from kfloop.pipelines.local import environments
from kfloop.pipelines.local.record import RunRecord
from kfloop.pipelines.loop import Loop, load_loop
from kfloop.scripts.options import config_option, state_option
from kfloop.scripts.run import run_for_loop
from kfloop.scripts.simulate_page import simulation_page
from kfloop.scripts.tables import print_table
from kfloop.serving import local_state

METRICS = {"binary": "auc", "multiclass": "accuracy", "regression": "mae"}
NEVER, MONTHLY, OURS = "never", "every month", "kfloop"


@dataclass(frozen=True)
class Month:
    """One month of the simulation.

    Attributes:
        since: First day, ISO 8601.
        until: First day of the next one.
        model_uri: The model that was live in it.
        version: Its version.
        drift: What detect_drift decided at its end.
        performance: What measure_performance decided.
        action: `retrain` or `keep`.
        promoted: The version that came out of the retraining and its canary, or empty.
        measured: The metric on the month's replayed requests, with their labels.
        estimated: What was estimated of it without labels; None where there is no estimate.
        why: The retraining decision in words.
    """

    since: str
    until: str
    model_uri: str
    version: str
    drift: str
    performance: str
    action: str
    promoted: str
    measured: float | None
    estimated: float | None
    why: str


@click.command()
@config_option
@state_option
@click.option("--since", help="First month, as 2013-04.  [default: 3 months after split.since]")
@click.option("--months", type=click.IntRange(1, 60), default=9, show_default=True)
@click.option(
    "--requests",
    type=click.IntRange(100),
    default=2000,
    show_default=True,
    help="Requests replayed per month, spread evenly.",
)
def simulate(config: Path, state: Path, since: str | None, months: int, requests: int) -> None:
    """Replay months of the past through the loop: serve, monitor, decide, retrain, canary.

    Each month the live model answers the month's requests, the monitoring pipeline judges it by
    them and retrains when that is called for, and the candidate goes through its canary. The same
    months are then scored by the first model alone, and by a model trained anew every month. It
    works in a state of its own, so that what you serve is not touched.
    """
    console = Console()
    described, base = load_loop(config)
    windows = list(_months(_first_month(described, since), months))
    home = state.absolute() / "simulation"
    _clear(home)
    environments.ensure(environments.FAMILIES, console=console)
    started = time.monotonic()
    with _log(home / "simulation.log") as log:
        lived = _live(described, base, home, windows, requests, console, log)
        console.print("scoring every month by all three …")
        backtest = _score(described, base, home, lived, console=log)
    scores = _scores(backtest, METRICS[described.task])
    _report(described, home, lived, scores, console)
    console.print(f"{time.monotonic() - started:.0f} s", highlight=False)


def _first_month(described: Loop, since: str | None) -> date:
    if not described.examples.timestamp:
        raise InputError("The loop has no examples.timestamp, so its past has no months.")
    try:
        if since:
            return date.fromisoformat(f"{since[:7]}-01")
        if described.split.since:
            return _after(date.fromisoformat(described.split.since[:10]).replace(day=1), 3)
    except ValueError as error:
        raise InputError(f"--since is {since!r}; write a month like 2013-04.") from error
    raise InputError("The loop has no split.since; say with --since where to begin.")


def _after(month: date, count: int) -> date:
    number = month.year * 12 + month.month - 1 + count
    return date(number // 12, number % 12 + 1, 1)


def _months(first: date, count: int) -> Iterator[tuple[date, date]]:
    for number in range(count):
        yield _after(first, number), _after(first, number + 1)


def _clear(home: Path) -> None:
    for service in local_state.list_services(home):
        local_state.stop(local_state.service_directory(home, service["name"]))
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)


@contextmanager
def _log(path: Path) -> Iterator[Console]:
    """Gives a console that writes to a file what the pipelines print."""
    with path.open("w", encoding="utf-8") as file:
        yield Console(file=file, width=120)


def _train_window(described: Loop, end: date) -> dict[str, str]:
    """Returns what the monitoring pipeline would train on at this moment."""
    retraining = described.monitoring.retraining
    split = end - timedelta(days=retraining.evaluation_days)
    return {
        "since": (split - timedelta(days=retraining.train_days)).isoformat(),
        "split_at": split.isoformat(),
        "until": end.isoformat(),
    }


def _live(
    described: Loop,
    base: Path,
    home: Path,
    windows: list[tuple[date, date]],
    requests: int,
    console: Console,
    log: Console,
) -> list[Month]:
    """Lives through the months; the service is stopped at the end, whatever happens."""
    directory = local_state.service_directory(home, described.service)
    try:
        with console.status("training the first model"):
            first = _train_window(described, windows[0][0])
            run_for_loop("training", described, base, home, log, **first)
        months = []
        for since, until in windows:
            with console.status(f"{since:%Y-%m}: replaying, monitoring"):
                month = _month(described, base, home, (since, until), requests, log)
            told = f"version {month.promoted} promoted" if month.promoted else "nothing promoted"
            outcome = f"{month.action}, {told}" if month.action == "retrain" else month.action
            console.print(f"{since:%Y-%m}  version {month.version} live: {outcome}. {month.why}")
            months.append(month)
    finally:
        local_state.stop(directory)
    return months


def _month(
    described: Loop,
    base: Path,
    home: Path,
    window: tuple[date, date],
    requests: int,
    log: Console,
) -> Month:
    since, until = (day.isoformat() for day in window)
    uri, version = _live_model(described, home)
    replayed = {"since": since, "until": until, "limit": requests}
    run_for_loop("replay", described, base, home, log, **replayed)
    days = (window[1] - window[0]).days
    run = run_for_loop("monitoring", described, base, home, log, until=until, window_days=days)
    decided = {decision["gate"]: decision for decision in run.decisions()}
    after = _live_model(described, home)[1]
    performance = run.task("measure-performance")
    metrics = performance.outputs["metrics"][0]["metadata"] if performance else {}
    metric = METRICS[described.task]
    return Month(
        since=since,
        until=until,
        model_uri=uri,
        version=version,
        drift=decided["drift"]["decision"],
        performance=decided["performance"]["decision"],
        action=decided["retraining"]["action"],
        promoted=after if after != version else "",
        measured=metrics.get(metric),
        estimated=metrics.get(f"estimated_{metric}"),
        why=decided["retraining"]["summary"],
    )


def _live_model(described: Loop, home: Path) -> tuple[str, str]:
    status = local_state.read_status(local_state.service_directory(home, described.service))
    for predictor in status["predictors"].values():
        if predictor.get("traffic") == 100:
            return predictor["storageUri"], str(predictor["model_version"])
    raise InputError(
        f"No model of {described.service} is live; see {home / 'simulation.log'} for why."
    )


def _score(
    described: Loop, base: Path, home: Path, lived: list[Month], console: Console
) -> RunRecord:
    trainings = []
    for month, trained in zip(lived, _trained_before(lived), strict=True):
        if trained:
            continue
        learned = _train_window(described, date.fromisoformat(month.since))
        trainings.append(
            {
                "since": learned["since"],
                "train_until": learned["split_at"],
                "at": month.since,
                "until": month.until,
            }
        )
    first = lived[0].model_uri
    # A model that was live throughout is the first one: it is scored once.
    pairs = {(uri, month.since, month.until) for month in lived for uri in (first, month.model_uri)}
    models = [{"model_uri": u, "at": at, "until": until} for u, at, until in sorted(pairs)]
    window = {"since": described.split.since, "until": lived[-1].until}
    return run_for_loop(
        "backtest", described, base, home, console, trainings=trainings, models=models, **window
    )


def _trained_before(lived: list[Month]) -> list[str]:
    """Returns for each month the model that the loop itself trained just before it, or "".

    It is the one that training every month gives too: the same rows, the same seed.
    """
    uris = ["", *(month.model_uri for month in lived)]
    return [uri if uri != before else "" for before, uri in itertools.pairwise(uris)]


@dataclass(frozen=True)
class Score:
    """A metric with its 95 % interval."""

    value: float
    low: float
    high: float


def _scores(record: RunRecord, metric: str) -> dict[tuple[str, str], Score]:
    """Returns the score by model URI (empty: trained anew) and month (as 2013-04)."""
    found = {}
    for task in record.tasks:
        if task.component != "evaluate_model":
            continue
        model = task.inputs["model"][0]
        window = task.outputs["evaluation"][0]["metadata"]["window"]
        values = task.outputs["metrics"][0]["metadata"]
        anew = model["producer"].endswith("train-model")
        found["" if anew else model["uri"], window["since"][:7]] = Score(
            values[metric], values[f"{metric}_low"], values[f"{metric}_high"]
        )
    return found


def _report(
    described: Loop,
    home: Path,
    lived: list[Month],
    scores: dict[tuple[str, str], Score],
    console: Console,
) -> None:
    metric = METRICS[described.task]
    first = lived[0].model_uri
    curves = {
        OURS: [scores[month.model_uri, month.since[:7]] for month in lived],
        NEVER: [scores[first, month.since[:7]] for month in lived],
        MONTHLY: [
            scores[uri, month.since[:7]]
            for uri, month in zip(_trained_before(lived), lived, strict=True)
        ],
    }
    retrained = sum(month.action == "retrain" for month in lived)
    trainings = {OURS: retrained, NEVER: 0, MONTHLY: len(lived)}
    means = {name: sum(s.value for s in row) / len(row) for name, row in curves.items()}
    table = Table("month", "live", "decision", *curves, title=f"{metric} of {described.name}")
    for index, month in enumerate(lived):
        values = [f"{curve[index].value:.4f}" for curve in curves.values()]
        table.add_row(month.since[:7], f"v{month.version}", month.action, *values)
    table.add_section()
    table.add_row("mean", "", "", *(f"{mean:.4f}" for mean in means.values()))
    table.add_row("trainings", "", "", *(str(trainings[name]) for name in curves))
    print_table(table)
    errors = [
        abs(month.estimated - month.measured)
        for month in lived
        if month.estimated is not None and month.measured is not None
    ]
    if errors:
        told = f"{sum(errors) / len(errors):.4f} on average, {max(errors):.4f} at most"
        console.print(f"estimated without labels, the monthly {metric} was off by {told}")
    document = {
        "metric": metric,
        "months": [asdict(month) for month in lived],
        "scores": {name: [asdict(score) for score in row] for name, row in curves.items()},
        "means": means,
        "trainings": trainings,
    }
    write_json(home / "simulation.json", document)
    write_text(home / "simulation.html", simulation_page(described.name, document))
    console.print(f"report: {home / 'simulation.html'}", soft_wrap=True, highlight=False)
