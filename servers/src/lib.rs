//! Real servers for tests and measurements: started in temporary folders on free ports, stopped, killed, paused and
//! started again on purpose, and gone when the test is.
//!
//! Nothing of a machine's own servers is touched. A program that is missing is an error that names its Debian
//! package, never a test that is skipped. Where PostgreSQL refuses to run as root, it and PgBouncer run as `postgres`, or
//! as `nobody` where there is no such account. What a test leaves behind when it is killed itself, a guard takes away.
//!
//! ```no_run
//! let mut server = servers::Postgres::start(&[])?;
//! server.create_database("shop")?;
//! assert_eq!(server.psql("shop", "SELECT 1")?, "1");
//! server.kill()?;
//! server.start_again()?;
//! # anyhow::Ok(())
//! ```
//!
//! # Layout
//!
//! [`postgres`] a PostgreSQL server and its standbys, [`pgbouncer`] PgBouncer before it, [`redis`] a Redis server, its
//! replicas, Sentinels and a cluster, [`relay`] faults between a client and a server, `place` folder, account and
//! guard, `running` a process with its log.

pub mod pgbouncer;
mod place;
pub mod postgres;
pub mod redis;
pub mod relay;
mod running;

pub use self::pgbouncer::PgBouncer;
pub use self::postgres::Postgres;
pub use self::redis::{Redis, RedisCluster, Sentinels};
pub use self::relay::Relay;
