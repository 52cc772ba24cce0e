"""What is trained: each module makes a Stage from a config and its parents."""
