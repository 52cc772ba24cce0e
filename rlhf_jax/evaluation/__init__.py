"""What a model is worth: win rates, flags, reward-model accuracy and calibration, KL, held-out
loss."""
