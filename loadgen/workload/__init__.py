"""The requests that are sent: how they are asked for, and their plan."""
