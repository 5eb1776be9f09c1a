"""The targets that are asked, live or simulated, and the records of what became of requests."""
