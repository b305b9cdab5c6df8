"""Alembic environment: runs inside the write transaction that `genrec.requests.database.migrate` opened."""

from alembic import context

from genrec.requests.schema import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
context.run_migrations()
