"""The fast decoder: C sources, their library, and the backend that calls it."""
