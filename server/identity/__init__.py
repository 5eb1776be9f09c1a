"""Who calls: certificates, tokens, and whose calls they make."""
