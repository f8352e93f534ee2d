"""A trained network as files that others load, checked and described."""
