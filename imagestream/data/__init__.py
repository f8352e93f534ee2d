"""The samples of a dataset, in order and exactly resumable, on their way into memory."""
