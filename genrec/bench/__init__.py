"""`genrec bench`: methods side by side on the same erasures, seeds and gates."""
