"""Processes: started, spoken to in frames, watched, bounded. Nothing here knows what they do."""
