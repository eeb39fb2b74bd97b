"""What a GPU is asked: parts of benchmarks/gpu.sh."""
