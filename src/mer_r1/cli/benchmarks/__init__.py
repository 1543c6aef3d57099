"""Commands of the two public benchmarks."""
