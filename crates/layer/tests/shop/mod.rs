//! A server with a shop's database: the schema `onceward` and a ledger.

use onceward::store::postgres::{
    address::Address,
    migrate::{MIGRATIONS, migrate},
};
use servers::Postgres;

/// Starts it.
pub(crate) async fn server() -> Postgres {
    let server = Postgres::start(&[]).unwrap();
    server.create_database("shop").unwrap();
    migrate(&Address::new(&server.url("shop"), None, None).unwrap(), MIGRATIONS, false).await.unwrap();
    let sql = "insert into onceward.secret (bytes) values (decode(repeat('07', 32), 'hex')); \
         create table ledger (id bigint generated always as identity, idem_id bytea); \
         create table called (key text); \
         select onceward.guard_table('ledger', 'idem_id')";
    server.psql("shop", sql).unwrap();
    server
}
