"""Parity check: do vLLM and the training model agree on tokens, positions and log-probabilities of real clips?

Run it once per model and per new version of either side. Sampling with one engine and training with another fails
silently: a placeholder expanded twice, frames at wrong times, weights under a name that the loader skips. All of these
still give fluent text. So each clip goes through both: the tokens of its prompt and their time-height-width positions
must be equal, and the log-probabilities of vLLM's greedy answer must be the policy's, up to rounding.

The weights are loaded as in training: from the live policy, under the names of `vllm.engine.weight_name`.
Source: docs/vllm.md.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mer_r1.data.clip import Clip
from mer_r1.data.media.read import read_media
from mer_r1.model.omni import Omni, load
from mer_r1.model.prompts import Prompt, collate, encode_prompt, media_tensors
from mer_r1.model.tower_outputs import embed, encode_media
from mer_r1.rl.vllm.colocated import completion_of
from mer_r1.rl.vllm.engine import id_difference, start, weight_name
from mer_r1.rl.vllm.rollouts import placeholders, request_of

TOLERANCE = 0.05
"""Mean difference of log-probabilities, in nats per token, that counts as equal; chosen for bfloat16, not measured."""
LONGEST_ANSWER = 32


@dataclass(frozen=True)
class Parity:
    """Comparison of both models on one clip.

    Attributes:
        tokens: number of tokens of our prompt; of these `video` and `audio` placeholders.
        ids: difference between vLLM's prompt tokens and ours; None if they are equal.
        positions: difference between vLLM's positions and ours; None if they are equal or could not be compared.
        answered: number of answer tokens whose log-probabilities were compared.
        mean: mean absolute difference of the log-probabilities, in nats; NaN if the prompts differ.
        largest: largest absolute difference, in nats.
        positions_seen: whether vLLM's positions could be read.
    """

    clip: str
    tokens: int
    video: int
    audio: int
    ids: str | None
    positions: str | None
    answered: int
    mean: float
    largest: float
    positions_seen: bool

    def agrees(self, tolerance: float = TOLERANCE) -> bool:
        """Whether tokens and positions are equal and the log-probabilities within the tolerance."""
        return self.ids is None and self.positions is None and self.mean <= tolerance


def compare(
    model: str, clips: Sequence[Clip], device: str | None = None, gpu_memory_utilization: float = 0.5
) -> Iterator[Parity]:
    """Compare the policy and vLLM on clips.

    Args:
        model: folder or hub name.
        clips: clips whose media files exist.
        device: device of the policy; None for the first GPU if there is one.
        gpu_memory_utilization: share of the GPU memory for vLLM; the policy needs the rest.

    Yields:
        One comparison per clip.

    Raises:
        UserError: vLLM is not installed, the model cannot be loaded, or a clip cannot be read.
    """
    omni = load(model, device=device or ("cuda" if torch.cuda.is_available() else "cpu"))
    omni.model.eval()
    precision = str(omni.model.dtype).removeprefix("torch.")
    vllm, engine = start(
        model,
        "mer-r1 parity",
        load_format="dummy",
        dtype=precision,
        gpu_memory_utilization=gpu_memory_utilization,
        logprobs_mode="processed_logprobs",
        max_num_seqs=1,
        seed=0,
    )
    weights = ((weight_name(name), weight.data) for name, weight in omni.model.named_parameters())
    engine.apply_model(lambda theirs: len(theirs.load_weights(weights)))
    engine.apply_model(_watch)
    greedy = vllm.SamplingParams(temperature=0.0, max_tokens=LONGEST_ANSWER, logprobs=0, detokenize=False)
    for clip in clips:
        yield _compare_one(omni, clip, engine, greedy)


def position_difference(expected: Tensor, found: Tensor) -> str | None:
    """The difference between our positions (3, P) and the engine's in a few words; None if they are equal."""
    if expected.shape != found.shape:
        return f"shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
    differs = (expected != found).any(dim=0)
    if not differs.any():
        return None
    first = int(differs.nonzero()[0])
    theirs, ours = ("/".join(map(str, each[:, first].tolist())) for each in (found, expected))
    return f"{int(differs.sum())} of {len(differs)}, the first at token {first}: {theirs}, expected {ours}"


@torch.no_grad()
def _compare_one(omni: Omni, clip: Clip, engine: Any, greedy: Any) -> Parity:
    media = media_tensors(omni, read_media(clip.video, clip.audio, omni.settings.limits()))
    asked = omni.settings.asked(clip.subtitle)
    prompt = encode_prompt(omni, asked, encode_media(omni.model, [media])[0])
    expected, names = prompt.input_ids.tolist(), placeholders(omni)
    output = engine.generate([request_of(omni, prompt, clip)], greedy, use_tqdm=False)[0]
    seen = engine.apply_model(_watched)[0]
    problem = id_difference(expected, output.prompt_token_ids, names)
    answer = completion_of(output.outputs[0])
    gap = torch.full((1,), torch.nan)
    if problem is None:
        gap = (_log_probabilities(omni, prompt, answer.ids) - torch.tensor(answer.logps)).abs()
    counts = {name: expected.count(token) for token, name in names.items()}
    return Parity(
        clip=clip.id,
        tokens=len(expected),
        **counts,
        ids=problem,
        positions=position_difference(prompt.position_ids, seen) if problem is None and seen is not None else None,
        answered=len(answer.ids),
        mean=float(gap.mean()),
        largest=float(gap.max()),
        positions_seen=seen is not None,
    )


def _log_probabilities(omni: Omni, prompt: Prompt, answer: list[int]) -> Tensor:
    batch = collate([prompt], [answer], omni.tokenizer.pad_token_id)
    embeddings = embed(omni.model, batch["input_ids"].to(omni.device), batch["media"])
    output = omni.model(inputs_embeds=embeddings, position_ids=batch["position_ids"].to(omni.device))
    logps = output.logits[0, len(prompt.input_ids) - 1 : -1].float().log_softmax(dim=-1).cpu()
    return logps[torch.arange(len(answer)), torch.tensor(answer)]


def _watch(model: Any) -> None:
    # vLLM does not return its positions, so the method that computes them is wrapped.
    original, model.positions_made = model.get_mrope_input_positions, []

    def watched(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        model.positions_made.append(found[0].detach().cpu())
        return found

    model.get_mrope_input_positions = watched


def _watched(model: Any) -> Tensor | None:
    # The positions made since the last call.
    made, model.positions_made = model.positions_made, []
    return made[-1] if made else None
