//! Where a database is, and how a connection to it is made.

use std::{fmt, future::Future, str::FromStr as _, sync::Arc, time::Duration};

use tokio_postgres::{AsyncMessage, Client, Config, NoTls, config::SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

/// How long a connection may take to come about.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A database and how to reach it. `Debug` shows neither password nor certificate.
#[derive(Clone)]
pub struct Address {
    config: Config,
    tls: Option<MakeRustlsConnect>,
}

/// Why a text is no address.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidAddress {
    /// Not as libpq has it.
    #[error("the address of the database cannot be read: {0}; write postgresql://user@host:5432/database")]
    Url(String),
    /// TLS is asked for and there is nothing to make it with.
    #[error(
        "the address says sslmode={0}, and it is to be spoken to in clear: leave out `tls = \"off\"`, or write sslmode=disable"
    )]
    NoTls(&'static str),
}

impl Address {
    /// Reads `postgresql://user:password@host:port/database?options`, or libpq's `key=value` form. A password given
    /// apart counts before the text's. With `tls`, connections use it and the server's name is checked, unless the
    /// text says `sslmode=disable`; without, they are in clear.
    ///
    /// # Errors
    /// [`InvalidAddress`]; its text shows no password.
    pub fn new(
        url: &str,
        password: Option<&str>,
        tls: Option<Arc<rustls::ClientConfig>>,
    ) -> Result<Self, InvalidAddress> {
        let mut config = Config::from_str(url).map_err(|error| {
            let source = std::error::Error::source(&error).map(|source| format!(": {source}"));
            InvalidAddress::Url(format!("{error}{}", source.unwrap_or_default()))
        })?;
        if let Some(password) = password {
            config.password(password);
        }
        if config.get_application_name().is_none() {
            config.application_name("onceward");
        }
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        // A server whose machine is gone is noticed between calls, too.
        config.keepalives_idle(Duration::from_secs(30)).tcp_user_timeout(Duration::from_secs(30));
        let tls = tls.filter(|_| config.get_ssl_mode() != SslMode::Disable);
        match (&tls, config.get_ssl_mode()) {
            (None, SslMode::Require) => return Err(InvalidAddress::NoTls("require")),
            (None, _) => config.ssl_mode(SslMode::Disable),
            // A server that has no TLS is refused, not spoken to in clear.
            (Some(_), _) => config.ssl_mode(SslMode::Require),
        };
        let tls = tls.map(|tls| MakeRustlsConnect::new(Arc::unwrap_or_clone(tls)));
        Ok(Self { config, tls })
    }

    /// Connects. The future that comes with the client is to be spawned: it carries the bytes, hands what the server
    /// says unasked to `heard`, and ends with the connection.
    ///
    /// # Errors
    /// As the server or the network has it; nothing was written.
    pub(crate) async fn connect(
        &self,
        heard: impl FnMut(AsyncMessage) + Send + 'static,
    ) -> Result<(Client, impl Future<Output = ()> + Send + 'static), tokio_postgres::Error> {
        use futures_util::future::Either;
        match &self.tls {
            Some(tls) => {
                let (client, connection) = self.config.connect(tls.clone()).await?;
                Ok((client, Either::Left(carry(connection, heard))))
            }
            None => {
                let (client, connection) = self.config.connect(NoTls).await?;
                Ok((client, Either::Right(carry(connection, heard))))
            }
        }
    }

    /// Host, port and database, for messages.
    pub(super) fn shown(&self) -> String {
        use tokio_postgres::config::Host;
        let host = |host: &Host| match host {
            Host::Tcp(name) => name.clone(),
            Host::Unix(path) => path.display().to_string(),
        };
        let hosts: Vec<String> = self.config.get_hosts().iter().map(host).collect();
        let ports: Vec<String> = self.config.get_ports().iter().map(u16::to_string).collect();
        format!("{}:{}/{}", hosts.join(","), ports.join(","), self.config.get_dbname().unwrap_or_default())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({})", self.shown())
    }
}

/// Carries a connection's bytes until it ends.
async fn carry<S, T>(mut connection: tokio_postgres::Connection<S, T>, mut heard: impl FnMut(AsyncMessage))
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
        heard(message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_shows_no_password_and_one_that_cannot_be_read_says_so() {
        let address = Address::new("postgresql://me:hush@db.example:6432/shop", Some("hush2"), None).unwrap();
        assert_eq!(format!("{address:?}"), "Address(db.example:6432/shop)");
        let wrong = Address::new("postgresql://me:hush@db.example:port/shop", None, None).unwrap_err().to_string();
        assert!(!wrong.contains("hush") && wrong.contains("port"), "{wrong}");
        assert!(matches!(Address::new("host=a sslmode=require", None, None), Err(InvalidAddress::NoTls("require"))));
    }
}
