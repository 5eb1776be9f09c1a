"""What is open to the network: addresses, connections, messages on their way, health, metrics."""
