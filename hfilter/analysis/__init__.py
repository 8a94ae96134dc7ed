"""The judging room: what any model's probabilities are worth beside the exact posteriors."""
