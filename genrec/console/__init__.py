"""The console: a web application over the ledger and MLflow, for the people who ask, verify and operate."""
