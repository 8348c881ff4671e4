"""One endpoint over HTTP: protocols, retries, budget, cache, clients. No torch."""
