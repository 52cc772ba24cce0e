"""The decoder, sampling from it, and where its arrays lie."""
