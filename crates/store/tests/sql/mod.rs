//! A server of its own with the schema `onceward` in it, for the tests of the SQL functions.

#![expect(dead_code, reason = "each test uses its part")]

pub(crate) mod oracle;
pub(crate) mod steps;

use onceward_store::postgres::{
    address::Address,
    migrate::{MIGRATIONS, migrate},
};
use servers::Postgres;
use tokio_postgres::{Client, NoTls};

/// The secret of `docs/vectors/record-ids.json`.
pub(crate) const SECRET: [u8; 32] = {
    let mut bytes = [0; 32];
    let mut at = 0;
    while at < 32 {
        bytes[at] = at as u8;
        at += 1;
    }
    bytes
};

/// Makes the schema.
pub(crate) async fn migrated(url: &str) {
    migrate(&Address::new(url, None, None).unwrap(), MIGRATIONS, false).await.unwrap();
}

/// A running server, its database `shop` migrated.
pub(crate) async fn server() -> Postgres {
    let server = Postgres::start(&[]).unwrap();
    server.create_database("shop").unwrap();
    migrated(&server.url("shop")).await;
    let client = connect(&server).await;
    client.execute("insert into onceward.secret (bytes) values ($1)", &[&&SECRET[..]]).await.unwrap();
    server
}

/// A connection to it.
pub(crate) async fn connect(server: &Postgres) -> Client {
    let (client, connection) = tokio_postgres::connect(&server.url("shop"), NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}
