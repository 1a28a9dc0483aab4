//! Certificates and keys from PEM files, and what is wrong with them.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use thiserror::Error;

use super::subject;

/// The largest file that is read, in bytes: a whole system's bundle of authorities is a quarter of it.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A file cannot be used for TLS.
#[derive(Debug, Error)]
#[error("{}: {why}", file.display())]
pub struct TlsError {
    /// The configuration key that names the file: `cert`, `key`, `client_ca` or `ca`.
    pub key: &'static str,
    /// The file, or what the system's authorities are called.
    pub file: PathBuf,
    /// What is wrong, and how to mend it. Nothing of a key.
    pub why: String,
    /// Whether it is not there, as on a machine that only checks a configuration.
    pub is_absent: bool,
}

/// All that is wrong with the files of one side.
#[derive(Debug, Error)]
pub struct TlsErrors(pub Vec<TlsError>);

impl fmt::Display for TlsErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if index == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl From<TlsError> for TlsErrors {
    fn from(error: TlsError) -> Self {
        Self(vec![error])
    }
}

/// A file that the configuration names, with the key that it stands under.
#[derive(Debug, Clone, Copy)]
pub(super) struct Named<'a> {
    pub(super) key: &'static str,
    pub(super) file: &'a Path,
}

impl Named<'_> {
    pub(super) fn wrong(self, why: impl Into<String>) -> TlsError {
        TlsError { key: self.key, file: self.file.to_owned(), why: why.into(), is_absent: false }
    }

    fn read(self) -> Result<Vec<u8>, TlsError> {
        let cannot = |error: std::io::Error| TlsError {
            is_absent: error.kind() == std::io::ErrorKind::NotFound,
            ..self.wrong(format!("cannot be read: {error}"))
        };
        // Opening a pipe would wait for its writer.
        if !std::fs::metadata(self.file).map_err(cannot)?.is_file() {
            return Err(self.wrong("is not a file"));
        }
        let mut bytes = Vec::new();
        let file = std::fs::File::open(self.file).map_err(cannot)?;
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(cannot)?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(self.wrong("is larger than 1MiB; is it the right file?"));
        }
        Ok(bytes)
    }

    /// The certificates of the file, in its order. At least one, and each can be read.
    pub(super) fn certificates(self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let bytes = self.read()?;
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(&bytes)
            .collect::<Result<_, _>>()
            .map_err(|error| self.wrong(format!("is not PEM: {error}")))?;
        if certificates.is_empty() {
            return Err(self.wrong("holds no certificate in PEM (\"-----BEGIN CERTIFICATE-----\")"));
        }
        for (index, certificate) in certificates.iter().enumerate() {
            if subject::validity(certificate).is_none() {
                return Err(self.wrong(format!("certificate number {} in it cannot be read", index + 1)));
            }
        }
        Ok(certificates)
    }

    /// The authorities of the file.
    pub(super) fn authorities(self) -> Result<RootCertStore, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in self.certificates()? {
            roots.add(certificate).map_err(|error| self.wrong(format!("holds no authority: {error}")))?;
        }
        Ok(roots)
    }

    /// The first private key of the file.
    pub(super) fn private_key(self) -> Result<PrivateKeyDer<'static>, TlsError> {
        let bytes = self.read()?;
        PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| {
            let text = String::from_utf8_lossy(&bytes);
            // PKCS#8 says it in its label, the older form in a line below.
            self.wrong(if text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED") {
                "holds an encrypted key, and there is nobody to ask for its password: decrypt it with `openssl pkey`, \
                 and let nobody but this user read it"
            } else {
                "holds no private key in PEM (\"-----BEGIN PRIVATE KEY-----\")"
            })
        })
    }
}

/// Tells the contents of files from other contents. Of one that cannot be read, why.
pub(super) fn digest<'a>(files: impl IntoIterator<Item = &'a Path>) -> u64 {
    let mut digest = DefaultHasher::new();
    for file in files {
        match (Named { key: "", file }).read() {
            Ok(bytes) => bytes.hash(&mut digest),
            Err(error) => error.why.hash(&mut digest),
        }
    }
    digest.finish()
}

/// What is odd about a chain whose time is over, or not yet come.
pub(super) fn warning(named: Named<'_>, chain: &[CertificateDer<'_>]) -> Option<TlsError> {
    let (from, until) = chain.first().and_then(subject::validity)?;
    let now = jiff::Timestamp::now().as_second();
    let spell = |second| jiff::Timestamp::from_second(second).map_or_else(|_| String::new(), |at| at.to_string());
    if now > until {
        return Some(named.wrong(format!("expired at {}: whoever checks it will refuse it; renew it", spell(until))));
    }
    (now < from).then(|| named.wrong(format!("is valid only from {} on; is this machine's clock right?", spell(from))))
}
