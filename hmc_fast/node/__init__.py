"""A node in an archive's network: films in by C-STORE, results back by C-STORE."""
