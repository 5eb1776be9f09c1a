"""What an operator sees over HTTP: the status page and what it shows, metrics, probes, Explain."""
