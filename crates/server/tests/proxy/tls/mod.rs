//! TLS on both sides: real programs as clients, real handshakes, certificates of authorities made for each test.

#[cfg(test)]
mod asks;
#[cfg(test)]
mod authority;
#[cfg(test)]
mod listener;
#[cfg(test)]
mod reload;
#[cfg(test)]
mod said;
#[cfg(test)]
mod upstreams;
