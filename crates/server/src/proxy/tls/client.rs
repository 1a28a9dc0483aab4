//! An upstream's side: the authorities that it is known by, and our own certificate where it asks for one.

use std::path::PathBuf;
use std::sync::{Arc, Weak};

use rustls::client::Resumption;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, RootCertStore};
use tokio_rustls::TlsConnector;

use super::certificates::{Certificates, Files, Kept, Loaded, Reload, files};
use super::files::{Named, TlsError, TlsErrors, warning};
use super::server::certified;
use super::{H2, HTTP_11, provider};

/// Sessions with one upstream that can be resumed.
const SESSIONS_MAX: usize = 256;

/// How an upstream is known, and we to it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UpstreamTls {
    /// The only authorities that count. Those of the system where `None`.
    pub ca: Option<PathBuf>,
    /// What is shown to an upstream that asks for a certificate.
    pub client_cert: Option<CertAndKey>,
}

/// A certificate chain and its private key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertAndKey {
    /// The chain, the own certificate first.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// TLS to an upstream.
#[derive(Debug)]
pub struct ClientTls {
    said: UpstreamTls,
    kept: Kept<Configs>,
}

/// The same twice, for the protocols that may be offered.
pub(super) struct Configs {
    http1: Arc<ClientConfig>,
    both: Arc<ClientConfig>,
}

impl ClientTls {
    /// Reads the files, and takes itself in among `certificates`. `whose` names the upstream in the log.
    ///
    /// # Errors
    ///
    /// All that is wrong with the files.
    pub fn load(whose: &str, said: &UpstreamTls, certificates: &Certificates) -> Result<Arc<Self>, TlsErrors> {
        let own = said.client_cert.as_ref();
        let paths = files([said.ca.as_deref(), own.map(|own| own.cert.as_path()), own.map(|own| own.key.as_path())]);
        let kept = Kept::load(format!("upstream {whose}"), paths, || load(said))?;
        let this = Arc::new(Self { said: said.clone(), kept });
        let side: Weak<Self> = Arc::downgrade(&this);
        certificates.add(side as Weak<dyn Reload>);
        Ok(this)
    }

    /// What would be wrong with the files that it names, errors and a warning. The system's authorities are not
    /// looked for.
    #[must_use]
    pub fn check(said: &UpstreamTls) -> (Vec<TlsError>, Option<TlsError>) {
        if *said == UpstreamTls::default() {
            return (Vec::new(), None);
        }
        match config(said, || Ok(RootCertStore::empty())) {
            Ok(loaded) => (Vec::new(), loaded.warning),
            Err(errors) => (errors.0, None),
        }
    }

    /// What begins TLS on a connection, under what is in force now, and offers HTTP/2 as well where it is wanted.
    pub(in crate::proxy) fn connector(&self, http2: bool) -> TlsConnector {
        let configs = self.kept.now();
        TlsConnector::from(Arc::clone(if http2 { &configs.both } else { &configs.http1 }))
    }

    /// Whether a certificate is shown to an upstream that asks.
    pub(in crate::proxy) fn shows_certificate(&self) -> bool {
        self.said.client_cert.is_some()
    }
}

impl Files for ClientTls {
    type Made = Configs;

    fn kept(&self) -> &Kept<Configs> {
        &self.kept
    }

    fn load(&self) -> Result<Loaded<Configs>, TlsErrors> {
        load(&self.said)
    }
}

fn load(said: &UpstreamTls) -> Result<Loaded<Configs>, TlsErrors> {
    let Loaded { value: mut http1, warning } = config(said, system_authorities)?;
    http1.resumption = Resumption::in_memory_sessions(SESSIONS_MAX);
    let mut both = http1.clone();
    http1.alpn_protocols = vec![HTTP_11.to_vec()];
    both.alpn_protocols = vec![H2.to_vec(), HTTP_11.to_vec()];
    Ok(Loaded { value: Configs { http1: Arc::new(http1), both: Arc::new(both) }, warning })
}

/// What asks a server over HTTP/1.1 that is no upstream. The authorities are those in the file `ca`, or the system's;
/// none at all where `is_checked` is false, for a caller that sets another verifier.
///
/// # Errors
///
/// All that is wrong with the file.
pub(crate) fn http1_client(ca: Option<PathBuf>, is_checked: bool) -> Result<ClientConfig, TlsErrors> {
    let said = UpstreamTls { ca, client_cert: None };
    let system = if is_checked { system_authorities } else { || Ok(RootCertStore::empty()) };
    let Loaded { value: mut http1, .. } = config(&said, system)?;
    http1.alpn_protocols = vec![HTTP_11.to_vec()];
    Ok(http1)
}

fn config(
    said: &UpstreamTls,
    system: impl FnOnce() -> Result<RootCertStore, TlsError>,
) -> Result<Loaded<ClientConfig>, TlsErrors> {
    let roots = match &said.ca {
        Some(file) => Named { key: "ca", file }.authorities(),
        None => system(),
    };
    let own = match &said.client_cert {
        None => Ok(None),
        Some(own) => {
            let (cert, key) = (Named { key: "cert", file: &own.cert }, Named { key: "key", file: &own.key });
            match (cert.certificates(), key.private_key()) {
                (Ok(chain), Ok(private)) => {
                    let warning = warning(cert, &chain);
                    certified(key, chain, private).map(|own| Some((own, warning))).map_err(|error| vec![error])
                }
                (chain, private) => Err([chain.err(), private.err()].into_iter().flatten().collect()),
            }
        }
    };
    let (roots, own) = match (roots, own) {
        (Ok(roots), Ok(own)) => (roots, own),
        (roots, own) => {
            let errors = roots.err().into_iter().chain(own.err().into_iter().flatten());
            return Err(TlsErrors(errors.collect()));
        }
    };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| system_wrong(error.to_string()))?
        .with_root_certificates(roots);
    Ok(match own {
        None => Loaded { value: builder.with_no_client_auth(), warning: None },
        Some((own, warning)) => {
            Loaded { value: builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own))), warning }
        }
    })
}

/// The authorities that this system trusts; `SSL_CERT_FILE` and `SSL_CERT_DIR` name others.
fn system_authorities() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (taken, _odd) = roots.add_parsable_certificates(found.certs);
    if taken == 0 {
        let cause = found.errors.first().map_or_else(String::new, |error| format!(" ({error})"));
        return Err(system_wrong(format!(
            "the system has no certificate authorities{cause}: install ca-certificates, or name a file with `ca`"
        )));
    }
    Ok(roots)
}

fn system_wrong(why: String) -> TlsError {
    TlsError { key: "ca", file: PathBuf::from("the system's certificates"), why, is_absent: false }
}
