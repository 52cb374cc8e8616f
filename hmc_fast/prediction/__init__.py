"""Predictions in bulk: from what a person names to a table, resumable chunk by chunk."""
