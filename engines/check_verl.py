"""verl 0.9.1: its registry, reward manager, data set and `compute_advantage`, and `main_ppo` with a tiny text model.

Run in the environment of `requirements/verl.txt`.
"""

import json
import os
import shutil
import subprocess
import sys

os.environ |= {"VERL_USE_EXTERNAL_MODULES": "mer_r1.integrations.verl", "MER_R1_METHOD": '{"method": "ad"}'}

import numpy as np
import torch
import verl
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from report import WORK, WORLD, check, documented, start
from verl import DataProto
from verl.trainer.ppo import core_algos

from mer_r1.integrations import verl as ours
from mer_r1.rl.method import Method, method_advantages

NAME = "verl"
OUT = WORK / "verl"
OURS = ("actor_rollout_ref.model.path=", "data.train_files=", "data.val_files=", "trainer.n_gpus_per_node=")
SETTINGS = [
    word for word in documented("integrations.md", "python -m verl.trainer.main_ppo") if not word.startswith(OURS)
]
"""The command of docs/integrations.md, but for model, files and GPUs."""
GOOD, HALF, WORSE = (f"<think>Hm.</think><answer>{words}</answer>" for words in ("happy", "happy, angry", "angry"))


def main() -> None:
    """Run every check; the first that fails ends the script."""
    start(NAME)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    registered()
    composed()
    data()
    rewards()
    for name in ("f1", "rd", "ad", "affectgpt-r1", "r1-omni"):
        advantages({"method": name})
    calibrated()
    trained()


def registered() -> None:
    """`import verl` registers the estimator."""
    with check(NAME, f"verl {verl.__version__} registers the estimator on import") as found:
        names = [name for name in ("gdpo", "mer_r1") if core_algos.get_adv_estimator_fn(name) is ours.advantages]
        found["names"] = ", ".join(names)
        assert names == ["gdpo", "mer_r1"]


def composed() -> None:
    """The documented settings are settings of verl, and none that it needs is missing."""
    with check(NAME, "the documented command's settings compose") as found:
        config = settings()
        missing = [key for key in OmegaConf.missing_keys(config) if not key.startswith("reward.reward_model")]
        found["missing"] = len(missing)
        assert not missing, missing


def settings(*more: str):
    with initialize_config_module(config_module="verl.trainer.config", version_base=None):
        return compose("ppo_trainer", overrides=[*SETTINGS, *more])


def data() -> None:
    """Rows of `mer-r1 export --rows verl`."""
    from transformers import AutoTokenizer
    from verl.utils.dataset.rl_dataset import RLHFDataset

    with check(NAME, "its data set reads the rows of `mer-r1 export --rows verl`") as found:
        tokenizer = AutoTokenizer.from_pretrained(WORLD / "text")
        config = OmegaConf.create({"max_prompt_length": 4096, "filter_overlong_prompts": False, "cache_dir": str(OUT)})
        rows = RLHFDataset(str(WORLD / "text.jsonl"), tokenizer, config)
        found["rows"] = len(rows)
        row = rows[0]
        assert row["data_source"] == "mer-r1"
        assert list(row["reward_model"]["ground_truth"]) == ["happy"]


def rewards() -> None:
    """Its reward manager calls our function, and gets every objective."""
    from transformers import AutoTokenizer
    from verl.trainer.ppo.reward import load_reward_manager

    with check(NAME, "its reward manager calls our reward function") as found:
        tokenizer = AutoTokenizer.from_pretrained(WORLD / "text")
        manager = load_reward_manager(settings(), tokenizer)
        ids = torch.tensor([tokenizer(HALF)["input_ids"]])
        batch = DataProto.from_dict(
            tensors={
                "prompts": torch.ones(1, 3, dtype=torch.long), "responses": ids,
                "attention_mask": torch.ones(1, 3 + ids.shape[1], dtype=torch.long),
            },
            non_tensors={
                "reward_model": np.array([{"ground_truth": ["happy"]}], dtype=object),
                "data_source": np.array(["mer-r1"], dtype=object), "extra_info": np.array([{}], dtype=object),
            },
        )  # fmt: skip
        scored = manager.loop.run_until_complete(manager.run_single(batch))
        extra = scored["reward_extra_info"]
        found |= {"score": round(scored["reward_score"], 3), "recall": extra["recall"], "precision": extra["precision"]}
        assert abs(scored["reward_score"] - 1.6) < 1e-6
        assert (extra["format"], extra["recall"], extra["precision"]) == (1.0, 1.0, 0.5)


def advantages(method: dict, **terms: list[float]) -> None:
    """Shuffled rows of two groups, through `compute_advantage`."""
    from verl.trainer.ppo.ray_trainer import compute_advantage

    os.environ["MER_R1_METHOD"] = json.dumps(method)
    chosen = Method(**method)
    with check(NAME, f"`compute_advantage`, shuffled rows of two groups, {chosen.method}") as found:
        order, uids = [3, 0, 4, 1, 5, 2], [*"aaabbb"]
        texts = [GOOD, WORSE, HALF, WORSE, GOOD, HALF]
        scored = [ours.compute_score("mer-r1", text, ["happy"]) for text in texts]
        columns = {name: np.array([scored[row][name] for row in order]) for name in scored[0]}
        columns |= {name: np.array(values)[order] for name, values in terms.items()}
        mask = torch.ones(6, 5)
        mask[:, 3:] = 0
        batch = DataProto.from_dict(
            tensors={"token_level_rewards": torch.zeros(6, 5), "response_mask": mask},
            non_tensors=columns | {"uid": np.array([uids[row] for row in order], dtype=object)},
        )
        made = compute_advantage(batch, adv_estimator="gdpo", num_repeat=3, config=settings().algorithm)
        matrix = torch.tensor([[one[name] for name in chosen.objectives] for one in scored])
        given = [torch.tensor(values) for values in terms.values()]
        expected = method_advantages(chosen, matrix, 3, *given).tokens[order]
        difference = (made.batch["advantages"] - expected[:, None] * mask).abs().max()
        found["largest difference from ours"] = float(difference)
        assert difference < 1e-6
        assert expected.abs().max() > 0.1


def calibrated() -> None:
    """With the two columns of a reward function of one's own."""
    os.environ["MER_R1_TERMS"] = "columns"
    plus, minus = [0.1, 0.9, -0.3, 0.0, 0.4, 0.2], [0.2, -0.1, 0.0, 0.5, 0.1, float("nan")]
    advantages({"method": "mer-r1"}, delta_correct=plus, delta_incorrect=minus)
    del os.environ["MER_R1_TERMS"]
    os.environ["MER_R1_METHOD"] = '{"method": "ad"}'
    with check(NAME, "mer-r1 without the columns ends when verl is imported") as found:
        done = subprocess.run(
            [sys.executable, "-c", "import verl"], capture_output=True, text=True, check=False,
            env=os.environ | {"MER_R1_METHOD": '{"method": "mer-r1"}'},
        )  # fmt: skip
        found["told"] = "set MER_R1_TERMS=columns" if "set MER_R1_TERMS=columns" in done.stderr else done.stderr[-200:]
        assert found["told"] == "set MER_R1_TERMS=columns"


def trained() -> None:
    """`main_ppo` with a tiny text model. Without a GPU verl starts no engine for rollouts: what it says is kept."""
    with check(NAME, "`python -m verl.trainer.main_ppo` with a tiny text model, no GPU") as found:
        words = [
            *SETTINGS, f"actor_rollout_ref.model.path={WORLD / 'text'}", f"data.train_files={WORLD / 'text.jsonl'}",
            f"data.val_files={WORLD / 'text.jsonl'}", "trainer.device=cpu", "trainer.n_gpus_per_node=1",
            "trainer.logger=[console]", "trainer.total_training_steps=1", "data.train_batch_size=4",
            "actor_rollout_ref.actor.ppo_mini_batch_size=4", "data.max_response_length=16",
            "ray_kwargs.ray_init.num_cpus=2", f"hydra.run.dir={OUT / 'hydra'}",
            "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4",
            "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=4", f"trainer.default_local_dir={OUT}",
            "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=4",
        ]  # fmt: skip
        try:
            done = subprocess.run(
                [sys.executable, "-m", "verl.trainer.main_ppo", *words], capture_output=True, text=True, check=False,
                timeout=900, env=os.environ | {"HYDRA_FULL_ERROR": "1", "RAY_DEDUP_LOGS": "0"},
            )  # fmt: skip
            said = done.stdout + done.stderr
            status = done.returncode
        except subprocess.TimeoutExpired as late:
            said, status = str(late.stdout) + str(late.stderr), "none after 900 s"
        (OUT / "main_ppo.log").write_text(said)
        errors = [line.strip() for line in said.splitlines() if "Error" in line]
        found["status"] = status
        if status:
            found["could not run"] = errors[-1][:160] if errors else said[-160:]


if __name__ == "__main__":
    main()
