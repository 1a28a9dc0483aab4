-- Who may call what. Applications get the role onceward_app, people who settle and erase keys onceward_operator, gateways
-- that keep their records here, or look for effects, onceward_gateway.

do $$
declare
  wanted name;
begin
  foreach wanted in array array['onceward_app', 'onceward_operator', 'onceward_gateway']::name[] loop
    if not exists (select 1 from pg_roles where rolname = wanted) then
      begin
        execute format('create role %I nologin', wanted);
      exception
        when insufficient_privilege then
          raise warning 'the role % was not created: this user may not create roles. Have it created (create role % nologin), then run: select onceward.grant_roles()', wanted, wanted;
        when duplicate_object or unique_violation then
          null;
      end;
    end if;
  end loop;
end $$;

revoke all on all functions in schema onceward from public;

-- Grants each role that is there what it is for. Repeatable; each migration calls it at its end, and whoever migrated does
-- after a role was created later.
create function onceward.grant_roles() returns text[]
language plpgsql volatile set search_path = onceward, pg_catalog, pg_temp
as $$
declare
  for_both constant text[] := '{record_id, record_text, child_key, get}';
  -- By name: those that a later migration makes are granted by it.
  for_app constant text[] := for_both || '{claim, complete, fail, release, renew, checkpoint, dispatched, assert_fence, effect, outbox, guard_row, guard_table, compensate_with}';
  for_operator constant text[] := for_both || '{resolve, forget, probe_effect, allow_compensation, disallow_compensation, compensate, compensations, compensation_again, compensation_settled, prune_effects}';
  functions text;
  granted text[] := '{}';
begin
  if exists (select 1 from pg_roles where rolname = 'onceward_app') then
    execute 'grant usage on schema onceward to onceward_app';
    select string_agg(p.oid::regprocedure::text, ', ') into functions from pg_proc p where p.pronamespace = 'onceward'::regnamespace and p.proname = any (for_app);
    execute format('grant execute on function %s to onceward_app', functions);
    granted := granted || 'onceward_app'::text;
  end if;
  if exists (select 1 from pg_roles where rolname = 'onceward_operator') then
    execute 'grant usage on schema onceward to onceward_operator';
    select string_agg(p.oid::regprocedure::text, ', ') into functions from pg_proc p where p.pronamespace = 'onceward'::regnamespace and p.proname = any (for_operator);
    execute format('grant execute on function %s to onceward_operator', functions);
    granted := granted || 'onceward_operator'::text;
  end if;
  if exists (select 1 from pg_roles where rolname = 'onceward_gateway') then
    execute 'grant usage on schema onceward to onceward_gateway';
    -- It keeps the records: the steps that write them are not kept from it.
    execute 'grant execute on all functions in schema onceward to onceward_gateway';
    execute 'revoke execute on function onceward.grant_roles() from onceward_gateway';
    execute 'grant select, insert, update, delete on onceward.record, onceward.mark, onceward.meta, onceward.rules, onceward.waiter to onceward_gateway';
    execute 'grant select on onceward.migration to onceward_gateway';
    granted := granted || 'onceward_gateway'::text;
  end if;
  return granted;
end $$;

revoke all on function onceward.grant_roles() from public;
select onceward.grant_roles();
