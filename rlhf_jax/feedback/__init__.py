"""Rankings: sample a policy, have a judge rank the samples, measure how far labelers agree."""
