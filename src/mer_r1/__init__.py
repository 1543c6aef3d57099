"""MER-R1: reinforcement learning that makes reasoning help multimodal emotion recognition (arXiv 2606.27652).

The names of `__all__` are the public interface, with an example for each in docs/api.md. A name is imported when it is
first used, so `import mer_r1` loads neither torch nor the command line.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from mer_r1.data.check import check_manifest
    from mer_r1.data.clip import Clip
    from mer_r1.data.manifest import read_manifest, write_manifest
    from mer_r1.emotions.metrics import wheel_scores
    from mer_r1.emotions.thinking import parse
    from mer_r1.emotions.wheels import builtin as builtin_wheels
    from mer_r1.emotions.wheels import official as official_wheels
    from mer_r1.evaluation.diagnosis.measure import diagnose
    from mer_r1.evaluation.predict import predict
    from mer_r1.evaluation.records import read_records
    from mer_r1.evaluation.summary import summarise
    from mer_r1.model.omni import load as load_model
    from mer_r1.rl.calibration import calibration_terms
    from mer_r1.rl.method import Method, method_advantages
    from mer_r1.rl.rewards import f1_reward, format_reward, precision_reward, recall_reward
    from mer_r1.rl.trainer import MERR1Trainer
    from mer_r1.training.recipes import RLRecipe, SFTRecipe
    from mer_r1.training.rl_stage import run_rl
    from mer_r1.training.sft_stage import run_sft

__all__ = ["Clip", "MERR1Trainer", "Method", "RLRecipe", "SFTRecipe"]
__all__ += ["builtin_wheels", "calibration_terms", "check_manifest", "diagnose", "f1_reward", "format_reward"]
__all__ += ["load_model", "method_advantages", "official_wheels", "parse", "precision_reward", "predict"]
__all__ += ["read_manifest", "read_records", "recall_reward", "run_rl", "run_sft", "summarise", "wheel_scores"]
__all__ += ["write_manifest"]

_PLACES = {
    "Clip": "data.clip.Clip",
    "read_manifest": "data.manifest.read_manifest",
    "write_manifest": "data.manifest.write_manifest",
    "check_manifest": "data.check.check_manifest",
    "builtin_wheels": "emotions.wheels.builtin",
    "official_wheels": "emotions.wheels.official",
    "parse": "emotions.thinking.parse",
    "wheel_scores": "emotions.metrics.wheel_scores",
    "Method": "rl.method.Method",
    "method_advantages": "rl.method.method_advantages",
    "calibration_terms": "rl.calibration.calibration_terms",
    "recall_reward": "rl.rewards.recall_reward",
    "precision_reward": "rl.rewards.precision_reward",
    "f1_reward": "rl.rewards.f1_reward",
    "format_reward": "rl.rewards.format_reward",
    "MERR1Trainer": "rl.trainer.MERR1Trainer",
    "RLRecipe": "training.recipes.RLRecipe",
    "SFTRecipe": "training.recipes.SFTRecipe",
    "run_sft": "training.sft_stage.run_sft",
    "run_rl": "training.rl_stage.run_rl",
    "load_model": "model.omni.load",
    "predict": "evaluation.predict.predict",
    "read_records": "evaluation.records.read_records",
    "summarise": "evaluation.summary.summarise",
    "diagnose": "evaluation.diagnosis.measure.diagnose",
}
"""Public name -> where it is defined."""

_TRAIN = ("MERR1Trainer", "RLRecipe", "SFTRecipe", "run_sft", "run_rl")
"""Names that need the extra `train`; the others need `predict` at most."""


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562).

    Raises:
        AttributeError: no such public name.
        ImportError: a package is missing; the message names the extra that installs it.
    """
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PLACES[name].rpartition(".")
    try:
        value = getattr(import_module(f"{__name__}.{module}"), attribute)
    except ModuleNotFoundError as error:
        if (error.name or __name__).split(".")[0] == __name__:
            raise
        extra = "train" if name in _TRAIN else "predict"
        raise ImportError(
            f"{__name__}.{name} needs the package {error.name}: install mer-r1 with the extra {extra}, mer-r1[{extra}]"
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
