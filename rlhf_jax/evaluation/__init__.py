"""Held-out prompts, sampled from several models and judged."""
