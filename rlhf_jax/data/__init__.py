"""The data room: records as users write them, tokenised once into tfds datasets, read back as batch t = rows[t]."""
