"""Side-by-side measurements; every figure in README and docs is printed by one of these modules."""
