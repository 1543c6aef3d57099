"""Commands of the lab: the demo, and the study (one command per question, `all`, `mechanism`, `report`)."""

import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from mer_r1.cli.app import HELP, app, console, progress, require, say
from mer_r1.cli.options import App
from mer_r1.data.workers import available_cores
from mer_r1.lab.study.runs.variants import STUDIES
from mer_r1.weights import BASE

NEEDED = ("predict", "train", "scenes")
"""Extras that the demo and the study need."""
NOT_KEPT = ("out", "workers", "dry_run")
"""Options of a study that its folder does not keep."""

study_app = App(
    help="Study the method in miniature: variants, seeds and paired intervals on generated scenes.",
    no_args_is_help=True,
    context_settings=HELP,
)
app.add_typer(study_app, name="study", rich_help_panel="Lab")


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Output folder; rerun to resume.")] = Path("runs/demo"),
    quick: Annotated[bool, typer.Option("--quick", help="Fewer clips and steps: 5 minutes, weaker results.")] = False,
    seed: Annotated[int, typer.Option(help="Random seed for scenes, model and training.")] = 0,
) -> None:
    """Run everything end to end on generated scenes: SFT and RL with MER-R1 from the built-in base, report."""
    from mer_r1.lab.demo import run_demo

    require(*NEEDED)
    run_demo(out, quick=quick, seed=seed, console=console, bar=progress)


@dataclass(frozen=True)
class Plan:
    """Options of every study."""

    seeds: Annotated[int | None, typer.Option(min=1, help="Training seeds, from 0; each study's own by default.")] = (
        None
    )
    out: Annotated[Path, typer.Option(help="Output folder of all runs; finished runs in it are kept.")] = Path(
        "runs/study"
    )
    scenes: Annotated[Path | None, typer.Option(help="Manifest with train, val and test; made here by default.")] = None
    base: Annotated[str, typer.Option(help="Folder or name of the model that every cold start begins with.")] = BASE
    settings: Annotated[list[str] | None, typer.Option("--set", help="Override key=value in RL runs; repeatable.")] = (
        None
    )
    sft_settings: Annotated[list[str] | None, typer.Option("--set-sft", help="Override key=value in cold starts.")] = (
        None
    )
    num_clips: Annotated[str, typer.Option(help="Training, validation and test clips to make.")] = "1480,300,400"
    num_answers: Annotated[int, typer.Option(min=1, help="Sampled answers per clip; greedy ones come beside them.")] = 8
    recipe: Annotated[Path | None, typer.Option(help="Recipe to override sections of; the tiny one by default.")] = None
    trial: Annotated[bool, typer.Option("--trial", help="Evaluate on validation clips only, to try settings.")] = False
    workers: Annotated[int | None, typer.Option(min=1, help="Processes of one thread; one per core by default.")] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would run.")] = False


def _command(name: str, question: str) -> None:
    @study_app.command(name, help=question)
    def run(plan: Plan) -> None:
        _run(name, plan)


for _name, _study in STUDIES.items():
    _command(_name, _study.question)
_command("all", "All questions.")


@study_app.command()
def mechanism(
    out: Annotated[Path, typer.Option(help="Output folder; finished formulas in it are kept.")] = Path(
        "runs/mechanism"
    ),
    seeds: Annotated[int | None, typer.Option(min=2, help="Paired seeds; 72 by default, 12 with --quick.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="RL steps; 300 by default, 60 with --quick.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer seeds, steps and test clips: wide intervals.")] = False,
    docs: Annotated[Path | None, typer.Option(help="Update DOCS/study/mechanism and DOCS/mechanism.md too.")] = None,
) -> None:
    """When does calibration pay? A policy so small that all seeds are one batch; 15 minutes on one core."""
    from mer_r1.lab.study.mechanism import report
    from mer_r1.lab.study.mechanism.train import Setup

    sizes = {"seeds": 12, "steps": 60, "test_clips": 100} if quick else {}
    given = {name: value for name, value in (("seeds", seeds), ("steps", steps)) if value is not None}
    data = report.run_study(Setup(**{**sizes, **given}), out, shlex.join(["mer-r1", *sys.argv[1:]]), say)
    console.print(report.terminal_table(data))
    say(f"report: {report.write_report(data, out)}")
    for path in report.publish(out, docs) if docs else ():
        say(f"written: {path}")


@study_app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Output folder of a study.")],
    docs: Annotated[Path | None, typer.Option(help="Update DOCS/study and DOCS/study.md too.")] = None,
) -> None:
    """Write tables, figures and claims of the finished runs."""
    from mer_r1.lab.study.results.report import publish, write_report
    from mer_r1.lab.study.runs.session import read_session

    studies, jobs = read_session(folder)
    say(f"report: {write_report(studies, jobs, folder)}")
    for path in publish(folder, docs) if docs else ():
        say(f"written: {path}")


def _run(name: str, plan: Plan) -> None:
    from mer_r1.lab.study.results.report import write_report
    from mer_r1.lab.study.runs.jobs import plan as plan_jobs
    from mer_r1.lab.study.runs.schedule import is_done, run_jobs
    from mer_r1.lab.study.runs.session import keep_session, read_session, to_options
    from mer_r1.lab.study.runs.variants import chosen_studies

    out = plan.out
    told: dict[str, Any] = {key: value for key, value in asdict(plan).items() if key not in NOT_KEPT}
    if not plan.dry_run:
        require(*NEEDED)
        keep_session(name, out, told, shlex.join(["mer-r1", *sys.argv[1:]]))
        told["recipe"] = None  # the folder has its own now
    jobs = plan_jobs(chosen_studies(name), to_options(out, told))
    left = [job for job in jobs if not is_done(out, job)]
    say(f"{len(jobs)} jobs, {len(jobs) - len(left)} of them done")
    if plan.dry_run:
        for job in left:
            say(f"{job.name}: python -m {job.module} {shlex.join(job.arguments)}")
        return
    run_jobs(jobs, out, plan.workers or available_cores(), report=say)
    studies, jobs = read_session(out)
    say(f"report: {write_report(studies, jobs, out)}")
