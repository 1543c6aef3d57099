"""The method and the benchmarks as plug-ins for ms-swift, verl and lmms-eval."""
