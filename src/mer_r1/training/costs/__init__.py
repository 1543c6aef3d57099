"""What training costs: sizes of models (`shapes`), FLOPs and time (`work`), `memory`, and the `plan` of a run."""
