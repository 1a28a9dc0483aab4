//! Who is at the other end of a client's connection, and whose word counts.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;
use thiserror::Error;

/// The peer of a client's connection. Every request that comes through [`serve`](super::serve) has one among its
/// extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// The address of the socket's other end, never one from a header.
    pub address: SocketAddr,
    /// Whether it is in `listen.trusted`: only then do its `Forwarded`, principal and tenant headers count.
    pub trusted: bool,
}

/// The networks of `listen.trusted`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trusted(Arc<[Network]>);

/// A network as `10.0.0.0/8`, `fd00::/8` or a single address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Network {
    address: IpAddr,
    prefix_bits: u8,
}

/// A network of `listen.trusted` cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} is not a network: write it as 10.0.0.0/8, fd00::/8 or 192.0.2.7")]
pub struct NetworkError {
    text: String,
}

impl Trusted {
    /// Reads networks as the configuration spells them.
    ///
    /// # Errors
    ///
    /// Names the first text that is no network.
    pub fn parse<T: AsRef<str>>(networks: impl IntoIterator<Item = T>) -> Result<Self, NetworkError> {
        networks.into_iter().map(|text| text.as_ref().parse()).collect::<Result<_, _>>().map(Self)
    }

    /// Whether an address is in one of the networks. An IPv4 address in its IPv6 form is the IPv4 address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(address))
    }
}

impl Network {
    fn contains(self, address: IpAddr) -> bool {
        let (network, address, width) = match (self.address, address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                (u128::from(network.to_bits()), u128::from(address.to_bits()), 32)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => (network.to_bits(), address.to_bits(), 128),
            _ => return false,
        };
        let host_bits = width - u32::from(self.prefix_bits);
        (network ^ address).checked_shr(host_bits).unwrap_or(0) == 0
    }
}

impl FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let refuse = || NetworkError { text: text.to_owned() };
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.trim().parse().map_err(|_| refuse())?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let prefix_bits = match prefix {
            None => width,
            Some(prefix) => prefix.trim().parse().ok().filter(|bits| *bits <= width).ok_or_else(refuse)?,
        };
        Ok(Self { address, prefix_bits })
    }
}

/// What is said upstream of a peer; made once for a connection, so that a request only counts references up.
#[derive(Debug, Clone)]
pub(super) struct PeerFields {
    pub(super) peer: Peer,
    /// For `X-Forwarded-For`.
    pub(super) address: HeaderValue,
    /// For `Forwarded`, RFC 7239.
    pub(super) forwarded: HeaderValue,
    /// For `X-Forwarded-Proto`.
    pub(super) proto: HeaderValue,
}

impl PeerFields {
    /// `tls` is whether the peer speaks it to this listener.
    pub(super) fn new(peer: Peer, tls: bool) -> Self {
        let proto = if tls { "https" } else { "http" };
        let ip = peer.address.ip().to_canonical();
        let forwarded = match ip {
            IpAddr::V4(ip) => format!("for={ip};proto={proto}"),
            IpAddr::V6(ip) => format!("for=\"[{ip}]\";proto={proto}"),
        };
        Self {
            peer,
            address: value(ip.to_string()),
            forwarded: value(forwarded),
            proto: HeaderValue::from_static(proto),
        }
    }
}

fn value(text: String) -> HeaderValue {
    // An address and our own punctuation are visible ASCII; an empty field would be the harmless way to be wrong.
    HeaderValue::from_maybe_shared(Bytes::from(text)).unwrap_or_else(|_| HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_contain_what_their_prefix_covers() {
        let trusted = Trusted::parse(["10.0.0.0/8", "192.0.2.7", "fd00::/8"]).unwrap();
        for (address, inside) in [
            ("10.255.0.1", true),
            ("11.0.0.1", false),
            ("192.0.2.7", true),
            ("192.0.2.6", false),
            ("fd12::1", true),
            ("fe80::1", false),
            ("::ffff:10.1.2.3", true),
        ] {
            assert_eq!(trusted.contains(address.parse().unwrap()), inside, "{address}");
        }
        assert!(Trusted::parse(["0.0.0.0/0"]).unwrap().contains("203.0.113.9".parse().unwrap()));
        assert!(!Trusted::default().contains("127.0.0.1".parse().unwrap()));
    }

    #[test]
    fn what_is_no_network_is_named() {
        for text in ["10.0.0.0/33", "example.com", "10.0.0.0/-1", "/8", ""] {
            let error = Trusted::parse([text]).unwrap_err();
            assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
        }
    }
}
