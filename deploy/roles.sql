-- Least privilege on the ledger's database (docs/access.md). Run it as the owner of the tables once `genrec requests list`
-- has made them, and again after each upgrade of genrec; it is safe to repeat:
--   psql --single-transaction --set ON_ERROR_STOP=1 --file deploy/roles.sql DATABASE
-- Then give a login one of the roles: CREATE ROLE shop LOGIN PASSWORD '...' IN ROLE genrec_requester;
DO $$
DECLARE name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['genrec_requester', 'genrec_operator', 'genrec_auditor', 'genrec_serving'] LOOP
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
      EXECUTE format('CREATE ROLE %I NOLOGIN', name);
    END IF;
  END LOOP;
END $$;

REVOKE CREATE ON SCHEMA public FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA public FROM PUBLIC, genrec_requester, genrec_operator, genrec_auditor, genrec_serving;
GRANT USAGE ON SCHEMA public TO genrec_requester, genrec_operator, genrec_auditor, genrec_serving;
GRANT SELECT ON alembic_version TO genrec_requester, genrec_operator, genrec_auditor;

-- The requester submits, and reads what it has submitted itself; never a person's id, not even its own requests'.
ALTER TABLE requests ADD COLUMN IF NOT EXISTS submitted_by name DEFAULT current_user;
ALTER TABLE requests ENABLE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS own ON requests;
DROP POLICY IF EXISTS submit ON requests;
DROP POLICY IF EXISTS everything ON requests;
CREATE POLICY own ON requests FOR SELECT TO genrec_requester USING (submitted_by = current_user);
CREATE POLICY submit ON requests FOR INSERT TO genrec_requester
  WITH CHECK (submitted_by = current_user AND state = 'received');
CREATE POLICY everything ON requests TO genrec_operator, genrec_auditor USING (true);
GRANT INSERT ON requests TO genrec_requester;
GRANT SELECT (seq, hash), INSERT ON audit TO genrec_requester;

-- The operator verifies, runs nights and purges. Nobody but the owner may change or remove a row of the audit chain.
GRANT SELECT, INSERT, UPDATE ON requests, batches, leases TO genrec_operator;
GRANT SELECT, INSERT, DELETE ON deny_items TO genrec_operator;
GRANT SELECT, INSERT ON audit, calibrations TO genrec_operator;

-- The auditor reads everything but people's ids.
GRANT SELECT ON batches, leases, deny_items, audit, calibrations TO genrec_auditor;

-- `genrec serve` reads the deny list.
GRANT SELECT ON deny_items TO genrec_serving;

DO $$
DECLARE columns text;
BEGIN
  SELECT string_agg(quote_ident(attname), ', ') INTO columns FROM pg_attribute
  WHERE attrelid = 'requests'::regclass AND attnum > 0 AND NOT attisdropped AND attname <> 'user_id';
  EXECUTE format('GRANT SELECT (%s) ON requests TO genrec_requester, genrec_auditor', columns);
END $$;
