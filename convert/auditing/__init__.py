"""What `convert/audit.py` checks, and the page it writes."""
