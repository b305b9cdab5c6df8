"""Prefect tasks: a few lines around a library call each. They take and give ids and paths, never models or raw ids."""
