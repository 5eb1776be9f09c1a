"""Reading messages that are too long for an event loop, in processes of their own."""
