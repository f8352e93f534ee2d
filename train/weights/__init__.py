"""The weights that a run begins with: where they come from, which tensor is which, and which of them stay."""
