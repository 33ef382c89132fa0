"""Weights & Biases and MLflow: experiment trackers that follow metrics.jsonl."""
