-- The logins of compose.yaml, one per role of roles.sql, after which it runs; passwords come from the environment.
-- Safe to repeat, and the way to change a password:
--   WORKER_PASSWORD=... SERVING_PASSWORD=... psql --set ON_ERROR_STOP=1 --file deploy/logins.sql DATABASE
\getenv worker_password WORKER_PASSWORD
\getenv serving_password SERVING_PASSWORD
SELECT format('CREATE ROLE %I LOGIN IN ROLE %I', login, role)
FROM (VALUES ('genrec_worker', 'genrec_operator'), ('genrec_serve', 'genrec_serving')) AS wanted (login, role)
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = login) \gexec
ALTER ROLE genrec_worker PASSWORD :'worker_password';
ALTER ROLE genrec_serve PASSWORD :'serving_password';
