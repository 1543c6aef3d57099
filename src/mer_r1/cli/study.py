"""Commands of the study: one a question, `all`, and `report`."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mer_r1.cli.app import app, say
from mer_r1.lab.study.runs.variants import STUDIES

study_app = typer.Typer(
    help="The paper's study in miniature: variants, seeds and paired intervals, on generated scenes.",
    no_args_is_help=True,
)
app.add_typer(study_app, name="study")

Seeds = Annotated[int, typer.Option(min=1, help="Seeds of training, from 0 on.")]
Out = Annotated[Path, typer.Option(help="Folder of all runs; what is finished in it is kept, whatever study made it.")]
Scenes = Annotated[Path | None, typer.Option(help="Manifest of the training clips; made here if not given.")]
Exam = Annotated[Path | None, typer.Option(help="Manifest of validation and test clips; made here if not given.")]
Base = Annotated[Path | None, typer.Option(help="Folder of the base model; made here if not given.")]
Set = Annotated[list[str] | None, typer.Option("--set", help="Override of every RL run, key=value; repeatable.")]
SetSFT = Annotated[list[str] | None, typer.Option("--set-sft", help="Override of every cold start.")]
Clips = Annotated[str, typer.Option(help="Training, validation and test clips, where they are made here.")]
Recipe = Annotated[Path | None, typer.Option(help="Recipe whose sections are overridden; the tiny one otherwise.")]
Jobs = Annotated[int | None, typer.Option(min=1, help="Processes at once, one thread each; all cores if not given.")]
Trial = Annotated[
    bool,
    typer.Option("--trial", help="Ask about validation clips only: to try settings, so that test clips choose none."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be run.")]
DEFAULT_OUT, DEFAULT_CLIPS = Path("runs/study"), "3600,300,1000"


def _command(name: str, question: str) -> None:
    def run(
        seeds: Seeds = 8,
        out: Out = DEFAULT_OUT,
        scenes: Scenes = None,
        exam: Exam = None,
        base: Base = None,
        settings: Set = None,
        sft_settings: SetSFT = None,
        clips: Clips = DEFAULT_CLIPS,
        recipe: Recipe = None,
        trial: Trial = False,
        jobs: Jobs = None,
        dry_run: DryRun = False,
    ) -> None:
        told: dict[str, Any] = {"seeds": seeds, "scenes": scenes, "exam": exam, "base": base, "clips": clips}
        told |= {"settings": tuple(settings or ()), "sft_settings": tuple(sft_settings or ()), "recipe": recipe}
        told["trial"] = trial
        _run(name, out, jobs, dry_run, told)

    run.__doc__ = question
    study_app.command(name)(run)


for _name, _study in STUDIES.items():
    _command(_name, _study.question)
_command("all", "Every question but those that another's result raised.")


@study_app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a study.")],
    docs: Annotated[
        Path | None, typer.Option(help="Also copy the results to DOCS/study and fill DOCS/study.md.")
    ] = None,
) -> None:
    """Tables, figures and claims of what is finished so far."""
    from mer_r1.lab.study.results.report import publish, write_report
    from mer_r1.lab.study.runs.session import read_session

    studies, jobs = read_session(folder)
    say(f"report: {write_report(studies, jobs, folder)}")
    for path in publish(folder, docs) if docs else ():
        say(f"written: {path}")


def _run(name: str, out: Path, cores: int | None, dry_run: bool, told: dict[str, Any]) -> None:
    from mer_r1.lab.study.results.report import write_report
    from mer_r1.lab.study.runs.jobs import plan
    from mer_r1.lab.study.runs.schedule import is_done, run_jobs
    from mer_r1.lab.study.runs.session import keep_session, read_session, to_options
    from mer_r1.lab.study.runs.variants import chosen_studies

    if not dry_run:
        keep_session(name, out, told, shlex.join(["mer-r1", *sys.argv[1:]]))
        told = {**told, "recipe": None}  # the folder's own from here on
    jobs = plan(chosen_studies(name), to_options(out, told))
    left = [job for job in jobs if not is_done(out, job)]
    say(f"{len(jobs)} jobs, {len(jobs) - len(left)} of them done")
    if dry_run:
        for job in left:
            say(f"{job.name}: python -m {job.module} {shlex.join(job.arguments)}")
        return
    run_jobs(jobs, out, cores or _cores(), report=say)
    studies, jobs = read_session(out)
    say(f"report: {write_report(studies, jobs, out)}")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
