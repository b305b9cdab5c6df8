-- Beside the ledger's own: run once, when the volume of PostgreSQL is new.
CREATE DATABASE mlflow ENCODING 'UTF8';
CREATE DATABASE prefect ENCODING 'UTF8';
