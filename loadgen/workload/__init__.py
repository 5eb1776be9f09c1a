"""What is sent: requests with their instants, lengths, tiers and tenants."""
