"""Label mappings from endpoint classes to task classes; applying one needs NumPy only."""
