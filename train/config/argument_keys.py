"""The library's messages name its own arguments; in a run's YAML, and as options, those have other names."""

KEYS = {
    "batch_size": "global_batch_size is that of all ranks",
    "cache": "cache= is data.local, and there is none where data.remote is null",
    "data": "data= is data.remote or, where that is null, data.local",
    "num_classes": "num_classes is model.num_classes",
}
OPTIONS = {"cache": "cache= is --cache", "data": "data= is --data; without it, the run's own"}
"""Of evaluate.py and export.py; they have no others of the library's arguments."""


def in_yaml(error: Exception) -> str:
    """Return an error's message and, where it asks to correct an argument of the library, the key that it has here."""
    about: tuple[str, ...] = getattr(error, "about", ())
    keys = "; ".join(KEYS.get(name, f"data.{name}") for name in about)
    return f"{error} (in YAML: {keys})" if keys else str(error)


def in_options(error: Exception) -> str:
    """Return the same with the options of a command that reads a run's dataset."""
    about: tuple[str, ...] = getattr(error, "about", ())
    options = "; ".join(OPTIONS[name] for name in about if name in OPTIONS)
    return f"{error} ({options})" if options else str(error)
