"""Checkpoints of a training run: which run they belong to, whether they are whole, and how trainers write them.

    training.json   in the output folder and in every checkpoint: what decides the content of the run; in a checkpoint
                    also the sums of the log that is under way, and a digest of every file

A checkpoint is written beside its place and then moved there: `checkpoint-N` is whole, or it is not there.
"""

import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel
from transformers.trainer_utils import rotate_checkpoints

from mer_r1.data.claim import differences, digests, read_signed, write_signed
from mer_r1.data.jsonl import write_atomically
from mer_r1.errors import UserError, printable
from mer_r1.model.absent_towers import same_towers_as, whole_state
from mer_r1.model.omni import Omni, make_readable, write_settings

RECORD_FILE, STATE_FILE, UNFINISHED = "training.json", "trainer_state.json", "unfinished"
CARD_FILE = "README.md"
NOT_RESUMED = (RECORD_FILE, CARD_FILE, "training_args.bin")
"""Files of a checkpoint that no resumed run reads."""


def write_record(folder: Path, **content: Any) -> None:
    """Write `training.json`."""
    write_signed(folder / RECORD_FILE, **content)


def read_record(folder: Path) -> dict[str, Any]:
    """The content of `training.json`; empty if the file is not there or not as it was written."""
    return read_signed(folder / RECORD_FILE)


def damage(folder: Path, run: dict[str, Any]) -> str:
    """What is wrong with the content of a checkpoint; "" if it is whole.

    Args:
        folder: the checkpoint.
        run: the run that is to resume from it.

    Raises:
        UserError: it belongs to another run or does not say to which, or files have been taken away from it.
    """
    if not (folder / RECORD_FILE).is_file():
        raise UserError(
            f"{printable(folder)}: no {RECORD_FILE} says which run it belongs to: choose another output_dir"
        )
    record = read_record(folder)
    if "files" not in record:
        return f"{RECORD_FILE} is not as it was written"
    if differing := differences(record["run"], run):
        raise UserError(f"{printable(folder)} belongs to another run ({differing})")
    files = record["files"]
    absent = [name for name in files if not (folder / name).is_file()]
    if STATE_FILE in absent:
        return f"{STATE_FILE} is missing"
    if absent or not any("optim" in name for name in files):
        raise UserError(
            f"{printable(folder)}: {(absent or ['the optimizer'])[0]} is missing, and a resumed run would continue "
            "without it: restore it, or remove this checkpoint"
        )
    found = zip(files, digests(folder / name for name in files), strict=True)
    changed = [name for name, value in found if files[name] != value]
    return f"{changed[0]} is not as it was written" if changed else ""


class WholeCheckpoints:
    """Mixin of a trainer: its checkpoints of a thinker are whole, and a resumed run really continues from them."""

    omni: Omni
    card: str | None = None
    args: Any
    accelerator: Any
    state: Any
    _metrics: Any
    _output_dir: str | None = None
    _earlier_log: dict[str, Any] | None = None

    def _get_output_dir(self, trial: Any) -> str:
        return self._output_dir or super()._get_output_dir(trial)  # type: ignore[misc, no-any-return]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        out, step = Path(self.args.output_dir), self.state.global_step
        beside, target = out / UNFINISHED, out / f"checkpoint-{step}"
        if self.args.should_save:
            shutil.rmtree(beside, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self._output_dir = str(beside)
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        self._output_dir = None
        self._finish_current_push()  # type: ignore[attr-defined]
        log = self._log_sums()
        self.accelerator.wait_for_everyone()  # each has written its part
        if self.args.should_save:
            folder = beside / target.name
            files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name not in NOT_RESUMED]
            names = [str(path.relative_to(folder)) for path in files]
            run = read_record(out).get("run", {})
            write_record(folder, run=run, log=log, files=dict(zip(names, digests(files), strict=True)))
            for old in checkpoints(out):
                if int(old.name.rpartition("-")[2]) >= step:  # damaged: the run has resumed from an earlier one
                    shutil.rmtree(old)
            folder.rename(target)
            shutil.rmtree(beside)
            rotate_checkpoints(str(out), self.args.save_total_limit, use_mtime=True)
        self.accelerator.wait_for_everyone()

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # self.model is the thinker, wrapped or not; for an adapter only its own weights are saved.
        if isinstance(model := self.accelerator.unwrap_model(self.model), PreTrainedModel):  # type: ignore[attr-defined]
            state_dict = whole_state(model, state_dict)
        super()._save(output_dir, state_dict)  # type: ignore[misc]
        if self.args.should_save:  # of several processes, the one that writes the rest
            write_settings(output_dir or self.args.output_dir, self.omni.settings)
            self._write_card(output_dir)
            make_readable(output_dir or self.args.output_dir)

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """Write the model's own card, where the library writes one about another kind of model."""
        if self.args.should_save:
            self._write_card(None)

    def _write_card(self, folder: str | None) -> None:
        if self.card:
            write_atomically(Path(folder or self.args.output_dir) / CARD_FILE, self.card)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        # The library saves a thinker under the hub's names, but its trainer loads by the module's own: nothing would
        # match, and the run would continue with the initial weights.
        target = model or self.model  # type: ignore[attr-defined]
        if isinstance(target, PeftModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
            return
        with same_towers_as(target):
            saved = type(target).from_pretrained(resume_from_checkpoint, dtype=target.dtype)
        target.load_state_dict(saved.state_dict())

    def _init_training_state(self, max_steps: int, *rest: Any) -> Any:
        found = super()._init_training_state(max_steps, *rest)  # type: ignore[misc]
        self.state.compute_steps(self.args, max_steps)  # the library would log and save as often as before
        resumed = rest[2]
        self._earlier_log = read_record(Path(resumed)).get("log") if resumed else None
        return found

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        self._continue_log()
        # A run that was killed after its last step has nothing left to train; the library would take one more step.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True  # type: ignore[attr-defined]
            return
        super()._run_epoch(*args, **kwargs)  # type: ignore[misc]

    def _finalize_training(self, *args: Any) -> Any:
        self._continue_log()
        return super()._finalize_training(*args)  # type: ignore[misc]

    def _log_sums(self) -> dict[str, Any]:
        # What the next log line averages over and what the last one sums up; the library forgets them on resuming.
        return {
            "loss": self.accelerator.gather(self._tr_loss).mean().item(),
            "losses": self._total_loss_scalar,
            "step": self._globalstep_last_logged,
            "tokens": self._total_train_tokens,
            "metrics": {name: [float(value) for value in values] for name, values in self._metrics["train"].items()},
        }

    def _continue_log(self) -> None:
        # After the library has reset its sums.
        if log := self._earlier_log:
            self._tr_loss = torch.tensor(log["loss"], device=self.args.device)
            self._total_loss_scalar, self._globalstep_last_logged = log["losses"], log["step"]
            self._total_train_tokens = log["tokens"]
            self._metrics["train"].update(log["metrics"])
            self._earlier_log = None

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """The host's log, with the mean loss of the whole run in its last line, not only of the part resumed."""
        if "train_loss" in logs:
            logs["train_loss"] = self._total_loss_scalar / max(1, self.state.global_step)
        super().log(logs, start_time)  # type: ignore[misc]


def checkpoints(folder: Path) -> list[Path]:
    """The folders checkpoint-N of a run, oldest first."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdecimal()]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]))
