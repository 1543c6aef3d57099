"""The method: reinforcement learning from labels that makes reasoning help.

One step samples G completions per clip, scores them, turns the scores into advantages, and updates the policy:

1. sample: `rollout` samples the completions and reads the confidences with and without their reasoning;
2. score: `rewards` gives each completion its recall, precision and format;
3. advantages: `advantages` normalises each objective within its group, `calibration` compares the confidences, and
   `method` puts both together as the chosen method says;
4. loss: `trainer` feeds the advantages to TRL's clipped loss.

Reading order: `rewards`, `advantages`, `calibration`, `method`, `rollout`, `trainer`. Beside them: `anchors` finds the
words of an answer among its tokens, `interference` and `statistics` make figures for the log, `vllm` samples with vLLM.
"""
