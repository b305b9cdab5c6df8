"""Prefect flows: when, where, and what if it fails. They compute nothing."""
