"""Losses, advantages and KL estimates: arrays in, arrays out."""
