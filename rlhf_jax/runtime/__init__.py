"""The host side: files, checkpoints, metrics, and the one training loop."""
