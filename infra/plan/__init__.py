"""How fast a run will be, what it will cost, and what bounds it, before anything is rented."""
