//! Where the servers are, and how they are reached.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use redis::{
    ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _, ProtocolVersion, PushInfo, RedisConnectionInfo,
    TlsCertificates, TlsMode,
    aio::AsyncPushSender,
    cluster::ClusterClient,
    sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType},
};

/// How long a connection may take to come about.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the library sends a command of a Cluster again where its slot has moved, or a connection broke. Each step
/// recognises itself.
const CLUSTER_RETRIES: u32 = 4;

/// One server, a primary that Sentinels name, or a Cluster. `Debug` shows no password.
#[derive(Clone)]
pub struct Address {
    shape: Shape,
    user: Option<String>,
    password: Option<String>,
    database: i64,
    tls: Option<Tls>,
    /// Of the Sentinels, where they have their own.
    sentinel: Credentials,
}

/// User and password.
#[derive(Clone, Default)]
pub struct Credentials {
    /// The user; `None`: the default one.
    pub user: Option<String>,
    /// The password.
    pub password: Option<String>,
}

/// What TLS is made with.
#[derive(Clone, Default)]
pub struct Tls {
    /// Authorities in PEM; `None`: the system's.
    pub ca: Option<Vec<u8>>,
    /// A certificate of our own and its key, in PEM.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Shape {
    Single(Host),
    Socket(PathBuf),
    Sentinel { hosts: Vec<Host>, name: String },
    Cluster { hosts: Vec<Host> },
}

type Host = (String, u16);

/// Why a text is no address. No text shows a password.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidAddress {
    /// Another scheme.
    #[error(
        "the address of Redis begins with none of redis://, rediss://, redis+unix://, redis+sentinel://, \
         rediss+sentinel://, redis+cluster://, rediss+cluster://"
    )]
    Scheme,
    /// A host or port that is none.
    #[error("the address of Redis names no server at {0:?}: write HOST or HOST:PORT, several separated by commas")]
    Host(String),
    /// More than one server where one is meant.
    #[error("the address of Redis names several servers: write redis+sentinel:// or redis+cluster://")]
    Several,
    /// No name of what the Sentinels watch.
    #[error("the address of the Sentinels does not name what they watch: redis+sentinel://HOST:26379/NAME")]
    Name,
    /// No path of a socket.
    #[error("the address of Redis names no socket: redis+unix:///run/redis/redis.sock")]
    Socket,
    /// A database that is no number, or one in a Cluster.
    #[error("the address of Redis names the database {0:?}: it is a number, and a Cluster has 0 alone")]
    Database(String),
    /// Text that is not UTF-8 after `%` was decoded.
    #[error("the address of Redis has a `%` that begins no character in its user, password, name or path")]
    Encoding,
    /// TLS material without TLS.
    #[error("certificates are given and the address of Redis speaks in clear: write rediss://")]
    ClearWithCertificates,
}

impl Address {
    /// Reads `redis://user:password@host:port/database`, `rediss://…` over TLS, `redis+unix:///path?db=0`,
    /// `redis+sentinel://host:port,host:port/name?db=0` and `redis+cluster://host:port,host:port`, the last two with
    /// `rediss+…` over TLS. User and password stand as in any URL, `%`-encoded where they must; those given apart count
    /// before them. Ports are 6379, and 26379 of Sentinels, where they are left out.
    ///
    /// # Errors
    /// [`InvalidAddress`].
    pub fn new(url: &str, apart: Credentials, sentinel: Credentials, tls: Option<Tls>) -> Result<Self, InvalidAddress> {
        let (scheme, rest) = url.split_once("://").ok_or(InvalidAddress::Scheme)?;
        let (secure, kind) = match scheme.split_once('+') {
            None => (scheme, ""),
            Some((secure, kind)) => (secure, kind),
        };
        let secure = match secure {
            "redis" => false,
            "rediss" => true,
            _ => return Err(InvalidAddress::Scheme),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (userinfo, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = userinfo.split_once(':').unwrap_or((userinfo, ""));
        let said = |text: &str| decoded(text).map(|text| (!text.is_empty()).then_some(text));
        let (user, password) = (apart.user.or(said(user)?), apart.password.or(said(password)?));
        let database = query.split('&').find_map(|pair| pair.strip_prefix("db=")).unwrap_or("");
        let (shape, database) = match kind {
            "" => (Shape::Single(only(read_hosts(hosts, 6379)?)?), if database.is_empty() { path } else { database }),
            "unix" if !secure && !path.is_empty() => {
                (Shape::Socket(PathBuf::from(format!("/{}", decoded(path)?))), database)
            }
            "unix" if !secure => return Err(InvalidAddress::Socket),
            "sentinel" if path.is_empty() => return Err(InvalidAddress::Name),
            "sentinel" => (Shape::Sentinel { hosts: read_hosts(hosts, 26379)?, name: decoded(path)? }, database),
            "cluster" => {
                (Shape::Cluster { hosts: read_hosts(hosts, 6379)? }, if database.is_empty() { path } else { database })
            }
            _ => return Err(InvalidAddress::Scheme),
        };
        let number = if database.is_empty() { Some(0) } else { database.parse().ok() };
        let number = number.filter(|number| *number == 0 || !matches!(shape, Shape::Cluster { .. }));
        let Some(database) = number else { return Err(InvalidAddress::Database(database.to_owned())) };
        let tls = match (secure, tls) {
            (true, tls) => Some(tls.unwrap_or_default()),
            (false, None) => None,
            (false, Some(_)) => return Err(InvalidAddress::ClearWithCertificates),
        };
        Ok(Self { shape, user, password, database, tls, sentinel })
    }

    /// Whether it is a Cluster.
    #[must_use]
    pub fn is_cluster(&self) -> bool {
        matches!(self.shape, Shape::Cluster { .. })
    }

    pub(super) fn database(&self) -> i64 {
        self.database
    }

    /// What connections are made from; of a Cluster, whose client makes them itself, with what is done with what is
    /// published.
    pub(super) fn open(&self, deadline: Duration, heard: Option<&Heard>) -> redis::RedisResult<Opening> {
        Ok(match &self.shape {
            Shape::Single((host, port)) => Opening::One(Box::new(self.client(self.tcp(host, *port))?)),
            Shape::Socket(path) => Opening::One(Box::new(self.client(ConnectionAddr::Unix(path.clone()))?)),
            Shape::Sentinel { hosts, name } => Opening::Sentinel(Box::new(self.sentinels(hosts, name)?)),
            Shape::Cluster { hosts } => Opening::Cluster(Box::new(self.cluster(hosts, deadline, heard)?)),
        })
    }

    fn tcp(&self, host: &str, port: u16) -> ConnectionAddr {
        match &self.tls {
            None => ConnectionAddr::Tcp(host.to_owned(), port),
            Some(_) => ConnectionAddr::TcpTls { host: host.to_owned(), port, insecure: false, tls_params: None },
        }
    }

    fn settings(&self) -> RedisConnectionInfo {
        let mut settings = RedisConnectionInfo::default()
            .set_db(self.database)
            .set_protocol(ProtocolVersion::RESP3)
            .set_lib_name("onceward", env!("CARGO_PKG_VERSION"));
        if let Some(user) = &self.user {
            settings = settings.set_username(user);
        }
        if let Some(password) = &self.password {
            settings = settings.set_password(password);
        }
        settings
    }

    fn client(&self, at: ConnectionAddr) -> redis::RedisResult<redis::Client> {
        let info: ConnectionInfo = at.into_connection_info()?.set_redis_settings(self.settings());
        match &self.tls {
            Some(tls) if !matches!(info.addr(), ConnectionAddr::Unix(_)) => {
                redis::Client::build_with_tls(info, certificates(tls))
            }
            _ => redis::Client::open(info),
        }
    }

    fn sentinels(&self, hosts: &[Host], name: &str) -> redis::RedisResult<SentinelClient> {
        let hosts = hosts.iter().map(|(host, port)| self.tcp(host, *port));
        let mut builder = SentinelClientBuilder::new(hosts, name, SentinelServerType::Master)?
            .set_client_to_redis_protocol(ProtocolVersion::RESP3)
            .set_client_to_redis_db(self.database);
        if let Some(user) = &self.user {
            builder = builder.set_client_to_redis_username(user);
        }
        if let Some(password) = &self.password {
            builder = builder.set_client_to_redis_password(password);
        }
        if let Some(user) = &self.sentinel.user {
            builder = builder.set_client_to_sentinel_username(user);
        }
        if let Some(password) = &self.sentinel.password {
            builder = builder.set_client_to_sentinel_password(password);
        }
        if let Some(tls) = &self.tls {
            builder = builder
                .set_client_to_redis_tls_mode(TlsMode::Secure)
                .set_client_to_sentinel_tls_mode(TlsMode::Secure)
                .set_client_to_redis_certificates(certificates(tls))
                .set_client_to_sentinel_certificates(certificates(tls));
        }
        builder.build()
    }

    fn cluster(&self, hosts: &[Host], deadline: Duration, heard: Option<&Heard>) -> redis::RedisResult<ClusterClient> {
        let hosts = hosts.iter().map(|(host, port)| self.tcp(host, *port));
        let hosts: Vec<ConnectionInfo> = hosts
            .map(|at| Ok(at.into_connection_info()?.set_redis_settings(self.settings())))
            .collect::<redis::RedisResult<_>>()?;
        let mut builder = ClusterClient::builder(hosts)
            .use_protocol(ProtocolVersion::RESP3)
            .retries(CLUSTER_RETRIES)
            .min_retry_wait(10)
            .max_retry_wait(200)
            .connection_timeout(CONNECT_TIMEOUT.min(deadline))
            .response_timeout(deadline);
        if let Some(user) = &self.user {
            builder = builder.username(user);
        }
        if let Some(password) = &self.password {
            builder = builder.password(password);
        }
        if let Some(tls) = &self.tls {
            builder = builder.tls(TlsMode::Secure).certs(certificates(tls));
        }
        match heard {
            Some(heard) => builder.push_sender(handed_on(heard)).build(),
            None => builder.build(),
        }
    }

    /// Hosts and what they are, for messages.
    fn shown(&self) -> String {
        let list = |hosts: &[Host]| {
            let hosts: Vec<String> = hosts.iter().map(|(host, port)| format!("{host}:{port}")).collect();
            hosts.join(",")
        };
        match &self.shape {
            Shape::Single((host, port)) => format!("{host}:{port}"),
            Shape::Socket(path) => path.display().to_string(),
            Shape::Sentinel { hosts, name } => format!("{name} of the Sentinels {}", list(hosts)),
            Shape::Cluster { hosts } => format!("the Cluster of {}", list(hosts)),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown())
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({self})")
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

/// What is done with what is published; called on a connection's own task.
pub(super) type Heard = Arc<dyn Fn(PushInfo) + Send + Sync>;

/// As the library takes it.
pub(super) fn handed_on(heard: &Heard) -> impl AsyncPushSender + use<> {
    let heard = Arc::clone(heard);
    move |push| {
        heard(push);
        Ok::<(), ()>(())
    }
}

/// What connections are made from.
pub(super) enum Opening {
    One(Box<redis::Client>),
    Sentinel(Box<SentinelClient>),
    Cluster(Box<ClusterClient>),
}

fn certificates(tls: &Tls) -> TlsCertificates {
    let client_tls = tls.identity.clone();
    TlsCertificates {
        client_tls: client_tls.map(|(client_cert, client_key)| redis::ClientTlsConfig { client_cert, client_key }),
        root_cert: tls.ca.clone(),
    }
}

fn only(hosts: Vec<Host>) -> Result<Host, InvalidAddress> {
    let [host] = <[Host; 1]>::try_from(hosts).map_err(|_| InvalidAddress::Several)?;
    Ok(host)
}

fn read_hosts(text: &str, port: u16) -> Result<Vec<Host>, InvalidAddress> {
    let wrong = |host: &str| InvalidAddress::Host(host.to_owned());
    text.split(',')
        .map(|host| {
            // An IPv6 address stands in brackets, as in any URL.
            let (name, number) = match host.strip_prefix('[') {
                Some(rest) => {
                    let (name, rest) = rest.split_once(']').ok_or_else(|| wrong(host))?;
                    (name, rest.strip_prefix(':'))
                }
                None => host.split_once(':').map_or((host, None), |(name, number)| (name, Some(number))),
            };
            let port = number.map_or(Ok(port), |number| number.parse().map_err(|_| wrong(host)))?;
            if name.is_empty() { Err(wrong(host)) } else { Ok((name.to_owned(), port)) }
        })
        .collect()
}

/// Decodes `%` and two hexadecimal digits (RFC 3986, section 2.1).
fn decoded(text: &str) -> Result<String, InvalidAddress> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2).ok_or(InvalidAddress::Encoding)?;
        let digits = std::str::from_utf8(digits).map_err(|_| InvalidAddress::Encoding)?;
        bytes.push(u8::from_str_radix(digits, 16).map_err(|_| InvalidAddress::Encoding)?);
        rest = after;
    }
    String::from_utf8(bytes).map_err(|_| InvalidAddress::Encoding)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> Result<Address, InvalidAddress> {
        Address::new(url, Credentials::default(), Credentials::default(), None)
    }

    #[test]
    fn an_address_names_one_server_a_socket_sentinels_or_a_cluster() {
        let shown = |url: &str| read(url).unwrap().to_string();
        assert_eq!(shown("redis://127.0.0.1"), "127.0.0.1:6379");
        assert_eq!(shown("rediss://me:hush@[::1]:7000/3"), "::1:7000");
        assert_eq!(shown("redis+unix:///run/my%20redis.sock?db=2"), "/run/my redis.sock");
        assert_eq!(shown("redis+sentinel://a,b:1/main?db=1"), "main of the Sentinels a:26379,b:1");
        assert_eq!(shown("rediss+cluster://:hush@a:1,b:2"), "the Cluster of a:1,b:2");
        let address = read("redis://m%40e:h%3Aush@h/2").unwrap();
        assert_eq!((address.user.as_deref(), address.password.as_deref()), (Some("m@e"), Some("h:ush")));
        assert_eq!(address.database, 2);
        assert!(!format!("{address:?}").contains("ush"));
        let apart = Credentials { user: None, password: Some("other".into()) };
        let address = Address::new("redis://me:hush@h", apart, Credentials::default(), None).unwrap();
        assert_eq!((address.user.as_deref(), address.password.as_deref()), (Some("me"), Some("other")));
    }

    #[test]
    fn what_is_no_address_is_told_without_its_password() {
        for (url, why) in [
            ("127.0.0.1:6379", InvalidAddress::Scheme),
            ("http://h", InvalidAddress::Scheme),
            ("redis+other://h", InvalidAddress::Scheme),
            ("redis://u:hush@", InvalidAddress::Host(String::new())),
            ("redis://u:hush@h:port", InvalidAddress::Host("h:port".into())),
            ("redis://a,b", InvalidAddress::Several),
            ("redis+sentinel://a:1", InvalidAddress::Name),
            ("redis+unix://", InvalidAddress::Socket),
            ("redis://h/x", InvalidAddress::Database("x".into())),
            ("redis+cluster://h/1", InvalidAddress::Database("1".into())),
            ("redis://u:%zz@h", InvalidAddress::Encoding),
        ] {
            let error = read(url).unwrap_err();
            assert!(!error.to_string().contains("hush"), "{error}");
            assert_eq!(error, why, "{url}");
        }
        let clear = Address::new("redis://h", Credentials::default(), Credentials::default(), Some(Tls::default()));
        assert_eq!(clear.unwrap_err(), InvalidAddress::ClearWithCertificates);
    }
}
