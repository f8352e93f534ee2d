"""Random changes of one image: policies, the operations that they draw, and what carries these out."""
