"""Benchmarks: `python -m benchmarks.bench_layer`, `.bench_train`, `.report`, `.compare`, from the root."""
