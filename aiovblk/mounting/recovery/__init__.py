"""Recovery: connections whose receivers do not run, or that are lost, are made again."""
