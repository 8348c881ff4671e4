"""HTTP access to one endpoint: protocols, retries, budget, cache and the clients. No torch."""
