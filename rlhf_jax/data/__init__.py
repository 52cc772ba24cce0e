"""The data room: records as users write them, tokenised once into tfds datasets, batch t = b[t]."""
