//! The listener's side: its certificate, and what is asked of clients.

use std::path::PathBuf;
use std::sync::{Arc, Weak};

use onceward::PeerCertificate;
use rustls::ServerConfig;
use rustls::server::WebPkiClientVerifier;
use rustls::sign::CertifiedKey;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_rustls::{Accept, TlsAcceptor};

use super::certificates::{Certificates, Files, Kept, Loaded, Reload, files};
use super::files::{Named, TlsError, TlsErrors, warning};
use super::{H2, HTTP_11, provider, subject};

/// `listen.tls`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerTls {
    /// The certificate chain, the listener's own first.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities that issue clients' certificates. There unless `client_auth` is off.
    pub client_ca: Option<PathBuf>,
    /// What is asked of clients.
    pub client_auth: ClientAuth,
}

/// What is asked of clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// No certificate.
    Off,
    /// A certificate where the client has one; it must be valid then.
    Optional,
    /// A valid certificate, else the handshake fails.
    Required,
}

/// TLS for a listener.
#[derive(Debug)]
pub struct ServerTls {
    said: ListenerTls,
    kept: Kept<ServerConfig>,
}

impl ServerTls {
    /// Reads the files, and takes itself in among `certificates`.
    ///
    /// # Errors
    ///
    /// All that is wrong with the files.
    pub fn load(said: &ListenerTls, certificates: &Certificates) -> Result<Arc<Self>, TlsErrors> {
        let paths = files([Some(said.cert.as_path()), Some(said.key.as_path()), said.client_ca.as_deref()]);
        let kept = Kept::load("listen.tls".to_owned(), paths, || load(said))?;
        let this = Arc::new(Self { said: said.clone(), kept });
        let side: Weak<Self> = Arc::downgrade(&this);
        certificates.add(side as Weak<dyn Reload>);
        Ok(this)
    }

    /// What would be wrong with it, errors and a warning.
    #[must_use]
    pub fn check(said: &ListenerTls) -> (Vec<TlsError>, Option<TlsError>) {
        match load(said) {
            Ok(loaded) => (Vec::new(), loaded.warning),
            Err(errors) => (errors.0, None),
        }
    }

    /// Begins TLS on a client's connection, under what is in force now.
    pub(in crate::proxy) fn accept(&self, stream: TcpStream) -> Accept<TcpStream> {
        TlsAcceptor::from(self.kept.now()).accept(stream)
    }

    /// Whose the verified certificate of a connection is.
    pub(in crate::proxy) fn certificate(stream: &TlsStream<TcpStream>) -> Option<PeerCertificate> {
        let (_, session) = stream.get_ref();
        session.peer_certificates().and_then(<[_]>::first).map(subject::of)
    }
}

impl Files for ServerTls {
    type Made = ServerConfig;

    fn kept(&self) -> &Kept<ServerConfig> {
        &self.kept
    }

    fn load(&self) -> Result<Loaded<ServerConfig>, TlsErrors> {
        load(&self.said)
    }
}

fn load(said: &ListenerTls) -> Result<Loaded<ServerConfig>, TlsErrors> {
    let provider = provider();
    let cert = Named { key: "cert", file: &said.cert };
    let key = Named { key: "key", file: &said.key };
    let chain = cert.certificates();
    let private = key.private_key();
    let clients = match (said.client_auth, &said.client_ca) {
        (ClientAuth::Optional | ClientAuth::Required, Some(file)) => {
            Some(Named { key: "client_ca", file }).map(|named| named.authorities().map(|roots| (named, roots)))
        }
        _ => None,
    };
    let (chain, private, clients) = match (chain, private, clients.transpose()) {
        (Ok(chain), Ok(private), Ok(clients)) => (chain, private, clients),
        (chain, private, clients) => {
            let errors = [chain.err(), private.err(), clients.err()];
            return Err(TlsErrors(errors.into_iter().flatten().collect()));
        }
    };
    let warning = warning(cert, &chain);
    let certified = certified(key, chain, private)?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| cert.wrong(error.to_string()))?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some((named, roots)) => {
            let mut verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
            if said.client_auth == ClientAuth::Optional {
                verifier = verifier.allow_unauthenticated();
            }
            builder.with_client_cert_verifier(verifier.build().map_err(|error| named.wrong(error.to_string()))?)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)));
    config.alpn_protocols = vec![H2.to_vec(), HTTP_11.to_vec()];
    // Sealed with keys of this configuration only: after a reload no session goes on that an authority vouched for
    // which is not trusted any more.
    config.ticketer = rustls::crypto::ring::Ticketer::new().map_err(|error| key.wrong(error.to_string()))?;
    Ok(Loaded { value: config, warning })
}

/// A chain with the key that belongs to it.
pub(super) fn certified(
    key: Named<'_>,
    chain: Vec<rustls::pki_types::CertificateDer<'static>>,
    private: rustls::pki_types::PrivateKeyDer<'static>,
) -> Result<CertifiedKey, TlsError> {
    CertifiedKey::from_der(chain, private, &provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => key.wrong("is not the key of the certificate: each needs its own"),
        other => key.wrong(format!("cannot be used: {other}")),
    })
}
