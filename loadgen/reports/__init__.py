"""A run as it is reported: in the terminal, as JSON, as CSV and as one HTML page."""
