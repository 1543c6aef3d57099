"""The paper's two benchmarks: which data sets, which questions, and how saved answers become the published numbers."""
