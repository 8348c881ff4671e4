"""From the endpoint's classes to the task's. NumPy only."""
