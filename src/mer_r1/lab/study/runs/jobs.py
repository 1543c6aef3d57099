"""Plan of a study: the jobs that its variants and seeds need, in order, each once.

A job is one command with its own folder. The folder's name contains a hash of everything that determines the result:
the recipe's section with all overrides, the seed, and the content of what it starts from. Two studies that need the
same run use the same folder; a changed recipe gets a new folder and never mixes with old results.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from mer_r1.data.claim import digest
from mer_r1.errors import UserError
from mer_r1.lab.study.runs.variants import STUDIES, TWICE, VARIANTS, Variant
from mer_r1.training.recipe_info import parse_yaml
from mer_r1.weights import BASE, model_path

CLI, WORKER = "mer_r1.cli", "mer_r1.lab.study.runs.worker"
CLIPS, ANSWERS = (1480, 300, 400), 8
"""Training, validation and test clips; sampled answers per clip and mode."""
NEW_TOKENS, NEW_TOKENS_TWICE = "96", "112"
"""Token limit of evaluation, and that of two answers: higher than in training, so that few answers are cut."""
CALIBRATION: tuple[str, ...] = ("calibration", "conditional", "anchors", "calibration_share", "alpha", "spread_floor")
CALIBRATION += ("space", "sides", "confidence_level", "confidence_clip")
"""Settings that only a calibrating method reads; they do not change the runs of other methods."""
REWARDS: tuple[str, ...] = (
    "format_weight",
    "distinct_words",
    "known_words",
    "absent_channels",
    "strict_answers",
    "strict_labels",
    "matching",
    "one_scale",
)
"""The method's other settings."""
DEFAULT = {"calibration": "answer"}
"""Default that a recipe need not repeat, so that variants are recognised as the same."""


@dataclass(frozen=True)
class StudyJob:
    """One command.

    Attributes:
        name: folder below the study's folder; identifies the job.
        module: module to run with ``python -m``.
        arguments: command line.
        needs: names of the jobs that must finish first.
        facts: metadata kept with the result: kind; of runs variants, seed, settings and start; of what is measured the
            run, and its name in `Study.measures`.
        alone: whether the job uses all cores.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    alone: bool = False


@dataclass(frozen=True)
class Options:
    """Options of a study, as `mer-r1 study NAME --help` describes them; `settings` are those of --set."""

    out: Path
    recipe: Path
    seeds: int | None = None
    scenes: Path | None = None
    base: str = BASE
    settings: tuple[str, ...] = ()
    sft_settings: tuple[str, ...] = ()
    num_clips: tuple[int, int, int] = CLIPS
    num_answers: int = ANSWERS
    trial: bool = False


def plan(studies: Sequence[str], options: Options) -> list[StudyJob]:
    """All jobs of some studies (keys of `STUDIES`), each after the jobs that it needs, seed by seed.

    Raises:
        UserError: if an option is invalid.
    """
    if options.trial and "auto" in studies:
        raise UserError("--trial: study 'auto' chooses on validation clips and judges on test clips")
    wanted: dict[tuple[int, str], set[str]] = {}
    for study in map(STUDIES.__getitem__, studies):
        for seed in range(options.seeds or study.seeds):
            for variant in study.variants:
                wanted.setdefault((seed, variant), set()).update(study.measures(seed, options.trial))
    planner = _Planner(options)
    for (seed, variant), measures in sorted(wanted.items(), key=lambda entry: entry[0][0]):
        planner.add_variant(variant, seed, sorted(measures))
    return list(planner.jobs.values())


def section(recipe: Path, name: str) -> dict[str, Any]:
    """A stage's section of a recipe merged over the common one, values as text.

    Raises:
        UserError: if the file or a section is missing.
    """
    try:
        content = _parsed(recipe.read_text(encoding="utf-8"))
        return {key: str(value) for key, value in {**content["common"], **content[name]}.items()}
    except (OSError, TypeError, KeyError, UnicodeDecodeError) as error:
        raise UserError(f"{recipe}: expected a recipe with the sections common and {name}; {error!r}") from error


@lru_cache(maxsize=4)
def _parsed(text: str) -> Any:
    return parse_yaml(text, "the study's recipe is not valid YAML")


def overrides(texts: Iterable[str]) -> dict[str, str]:
    """Parse key=value texts.

    Raises:
        UserError: if a text has no "=".
    """
    found = {}
    for text in texts:
        key, given, value = text.partition("=")
        if not given:
            raise UserError(f"invalid setting {text!r}: expected key=value")
        found[key.strip()] = value.strip()
    return found


def settings_of(variant: Variant, options: Options, recipe: Mapping[str, str] | None = None) -> dict[str, str]:
    """The overrides of a variant's RL run that its method reads, its own before the user's; on top of the `recipe`."""
    settings = {**(recipe or {}), **overrides(options.settings), **(variant.rl or {})}
    left_out = () if settings.get("method", "mer-r1") == "mer-r1" else CALIBRATION
    return {key: value for key, value in settings.items() if key not in left_out}


def content_hash(path: Path) -> str:
    """Hash of the content of a manifest or a model folder.

    Raises:
        UserError: if the file cannot be read.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    try:
        return digest(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from error


class _Planner:
    """Collects jobs; adding the same job twice keeps one."""

    def __init__(self, options: Options) -> None:
        self.options, self.out, self.jobs = options, options.out, dict[str, StudyJob]()
        scenes = content_hash(options.scenes) if options.scenes else options.num_clips
        self.origin = [content_hash(Path(model_path(options.base))), scenes]
        # In a subfolder: the job's folder also holds the schedule's files.
        self.manifest = options.scenes or self.out / "scenes" / "corpus" / "manifest.jsonl"
        if not options.scenes:
            splits = dict(zip(("train", "val", "test"), options.num_clips, strict=True))
            values = json.dumps({"out": str(self.manifest.parent), "splits": splits})
            self._add(StudyJob("scenes", WORKER, ("scenes", values), facts={"kind": "scenes"}, alone=True))
        # The towers are frozen, so all runs share these features. Only clips that SFT, RL or evaluation use.
        clips = [("train", self._clips(stage)) for stage in ("sft", "rl")] + [("val", ":"), ("test", ":")]
        values = json.dumps({"model": options.base, "manifest": str(self.manifest), "parts": clips})
        job = f"features-{_hash([self.origin, clips])}", WORKER, ("features", values), tuple(self.jobs)
        self.features = self._add(StudyJob(*job, {"kind": "features"}, alone=True))

    def _add(self, job: StudyJob) -> str:
        self.jobs.setdefault(job.name, job)
        return job.name

    def _clips(self, stage: str) -> str:
        given = overrides(self.options.sft_settings if stage == "sft" else self.options.settings)
        return given.get("clips") or section(self.options.recipe, stage).get("clips", ":")

    def add_variant(self, name: str, seed: int, measures: Sequence[str]) -> None:
        """One variant with one seed: its run, and what is measured of it."""
        variant = VARIANTS[name]
        run = self._cold_start(variant, seed) if variant.rl is None else self._reinforce(variant, seed)
        for measure in measures:
            if measure == "gradients":
                values = {"model": str(self.out / run / "model"), "manifest": str(self.manifest), "seed": seed}
                values |= {"out": str(self.out / run / measure), "clips": self._clips("rl")}
                self._measure(run, measure, measure, WORKER, ("gradients", json.dumps(values)))
            elif measure == "diagnosis":
                for judged in variant.diagnosed:
                    self._diagnose(run, judged, seed)
            else:
                self._evaluate(run, measure, variant, seed)

    def _cold_start(self, variant: Variant, seed: int) -> str:
        changed = {**overrides(self.options.sft_settings), **variant.sft}
        names = [name for name, other in VARIANTS.items() if other.rl is None and other.sft == variant.sft]
        key = _hash([self.origin, section(self.options.recipe, "sft"), changed, seed])
        return self._train("sft", names, seed, key, self.features, self.options.base, changed)

    def _reinforce(self, variant: Variant, seed: int) -> str:
        recipe = {**DEFAULT, **section(self.options.recipe, "rl")}
        every = {n: settings_of(v, self.options, recipe) for n, v in VARIANTS.items() if v.rl and v.sft == variant.sft}
        settings, changed = (settings_of(variant, self.options, given) for given in (recipe, None))
        same, start = [name for name in every if every[name] == settings], self._cold_start(variant, seed)
        model = str(self.out / start / "model")
        return self._train("rl", same, seed, _hash([start, settings, seed]), start, model, changed)

    def _train(
        self, stage: str, names: Sequence[str], seed: int, key: str, need: str, model: str, changed: Mapping[str, str]
    ) -> str:
        run = f"runs/{names[0]}-s{seed}-{key}"
        fixed = {"manifest": self.manifest, "model": model, "output_dir": self.out / run, "seed": seed}
        fixed |= {"disable_tqdm": "true", "resume_from_checkpoint": "true", "workers": 0, "report_to": "none"}
        settings = (f"{key}={value}" for key, value in {**fixed, **changed}.items())
        arguments = stage, "--config", str(self.options.recipe), *settings
        facts = {"kind": stage, "variants": list(names), "seed": seed, "settings": dict(changed), "start": model}
        return self._add(StudyJob(run, CLI, arguments, (need,), facts))

    def _evaluate(self, run: str, measure: str, variant: Variant, seed: int) -> None:
        split, _, sampled = measure.partition("-")
        tokens = NEW_TOKENS_TWICE if variant.sft == TWICE else NEW_TOKENS
        others = ["--out", str(self.out / run / measure), "--batch-size", "64", "--json"]
        others += ["--num-answers", str(self.options.num_answers), "--temperature", "1"] if sampled else []
        arguments = ("evaluate", *self._of(run, split, seed), "--max-new-tokens", tokens, *others)
        self._measure(run, measure, measure, CLI, arguments)

    def _diagnose(self, run: str, judged: str, seed: int) -> None:
        name, known = f"diagnosis-{judged}", ("method", *CALIBRATION, *REWARDS)
        settings = settings_of(VARIANTS[judged], self.options).items()
        others = ["--out", str(self.out / run / name / "diagnosis.json"), "--config", str(self.options.recipe)]
        others += [f"{key}={value}" for key, value in settings if key in known]
        arguments = ("diagnose", *self._of(run, "val", seed), "--max-new-tokens", NEW_TOKENS, *others)
        self._measure(run, name, "diagnosis", CLI, arguments)

    def _of(self, run: str, split: str, seed: int) -> tuple[str, ...]:
        model = str(self.out / run / "model")
        return "--model", model, "--manifest", str(self.manifest), "--split", split, "--seed", str(seed)

    def _measure(self, run: str, name: str, measure: str, module: str, arguments: tuple[str, ...]) -> None:
        facts = {"kind": "measure", "run": run, "measure": measure}
        self._add(StudyJob(f"{run}/{name}", module, arguments, (run,), facts))


def _hash(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=4).hexdigest()
