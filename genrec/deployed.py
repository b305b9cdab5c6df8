"""What `genrec deploy` makes on a Prefect server, by name: flows/deploy.py makes it, `genrec doctor` looks for it."""

TAG = "genrec"
POOLS = ("cpu", "gpu")
QUEUE = "champion"  # of the pool cpu: one run at a time
DEPLOYMENTS = ("daily-check", "full-training", "gpu", "nightly", "on-demand", "purge", "weekly")
DEAD = "genrec: dead runs are crashed"
STUCK = "genrec: runs that do not start are crashed"
ANEW = "genrec: a crashed night starts anew"
URGENT = "genrec: overdue requests and breaches start a night"
LATE = "genrec: a run that no worker takes is told"
FAILED = "genrec: a calibration, check, purge or training that failed is told"
CRASHED = "genrec: a crashed run is told"
AUTOMATIONS = (DEAD, STUCK, ANEW, URGENT)
TELLING = (LATE, FAILED, CRASHED)
"""The automations that need GENREC_ALERT_WEBHOOK."""
PENDING_S = 900
"""Seconds from a worker's taking a run to its start, for the slowest: deploy/kubernetes waits 600 for a node."""
