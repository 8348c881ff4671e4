"""Label mappings: they turn an endpoint's answers into scores of a task's own classes."""
