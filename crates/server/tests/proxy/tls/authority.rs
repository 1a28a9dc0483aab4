//! Authorities, the certificates they issue, and connections under them.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::support::{Answer, Gateway, output, soon};

/// An authority, with its certificate in a file.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    folder: PathBuf,
    pub(super) file: PathBuf,
}

/// A certificate and its key, in files.
#[derive(Clone, Debug)]
pub(super) struct Pair {
    pub(super) cert: PathBuf,
    pub(super) key: PathBuf,
}

impl Authority {
    pub(super) fn new(folder: &Path, name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = named(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let file = folder.join(format!("{name}.pem"));
        std::fs::write(&file, params.self_signed(&key).unwrap().pem()).unwrap();
        Self { issuer: Issuer::new(params, key), folder: folder.to_owned(), file }
    }

    /// A certificate for a server of these names.
    pub(super) fn server(&self, file: &str, names: &[&str]) -> Pair {
        self.issue(file, names, |params| params.distinguished_name = named(file))
    }

    /// A certificate for a client of this name.
    pub(super) fn client(&self, name: &str) -> Pair {
        self.issue(name, &[], |params| params.distinguished_name = named(name))
    }

    pub(super) fn issue(&self, file: &str, names: &[&str], more: impl FnOnce(&mut CertificateParams)) -> Pair {
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = DistinguishedName::new();
        more(&mut params);
        let pair = Pair { cert: self.folder.join(format!("{file}.crt")), key: self.folder.join(format!("{file}.key")) };
        std::fs::write(&pair.cert, params.signed_by(&key, &self.issuer).unwrap().pem()).unwrap();
        std::fs::write(&pair.key, key.serialize_pem()).unwrap();
        pair
    }

    /// A configuration for clients of a server that this authority vouches for.
    pub(super) fn trusting(&self, own: Option<&Pair>, protocols: &[&str]) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(&self.file).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some(own) => builder.with_client_auth_cert(own.chain(), own.private()).unwrap(),
        };
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }
}

impl Pair {
    pub(super) fn chain(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_file_iter(&self.cert).unwrap().collect::<Result<_, _>>().unwrap()
    }

    pub(super) fn private(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from_pem_file(&self.key).unwrap()
    }

    /// As the configuration spells it.
    pub(super) fn said(&self) -> String {
        format!("cert = {:?}, key = {:?}", self.cert, self.key)
    }

    /// Puts the contents of `other` in its place.
    pub(super) fn becomes(&self, other: &Self) {
        std::fs::copy(&other.cert, &self.cert).unwrap();
        std::fs::copy(&other.key, &self.key).unwrap();
    }
}

fn named(name: &str) -> DistinguishedName {
    let mut all = DistinguishedName::new();
    all.push(DnType::CommonName, name);
    all
}

/// A connection to a server that is called `localhost`.
pub(super) async fn connect(address: SocketAddr, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = soon("a connection", TcpStream::connect(address)).await?;
    let name = ServerName::try_from("localhost").unwrap();
    soon("a handshake", TlsConnector::from(Arc::new(config)).connect(name, stream)).await
}

/// What curl got, with the version of HTTP that it came by.
pub(super) struct Curled {
    pub(super) answer: Answer,
    pub(super) version: String,
}

/// A POST by curl. `Err` with its exit code and what it said where there is no answer.
pub(super) async fn curl(gateway: &Gateway, ca: &Authority, key: &str, more: &[&str]) -> Result<Curled, String> {
    let url = format!("https://localhost:{}/v1/payments", gateway.proxy.port());
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--include", "--noproxy", "*", "--max-time", "25"]);
    command.args(["--resolve", &format!("localhost:{}:127.0.0.1", gateway.proxy.port())]);
    command.args(["--cacert", ca.file.to_str().unwrap(), "--data", "{\"amount\":1}"]);
    command.args(["--header", "Content-Type: application/json", "--header", &format!("Idempotency-Key: {key}")]);
    command.args(more).arg(url);
    let output = output(command).await;
    if !output.status.success() {
        return Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)));
    }
    let at = output.stdout.windows(4).position(|window| window == b"\r\n\r\n").expect("a head");
    let head = String::from_utf8(output.stdout[..at].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let first: Vec<&str> = lines.next().unwrap().split(' ').collect();
    let field = |line: &str| {
        let (name, value) = line.split_once(':').unwrap();
        (name.to_ascii_lowercase(), value.trim().to_owned())
    };
    let answer = Answer {
        status: first[1].parse().unwrap(),
        headers: lines.map(field).collect(),
        body: output.stdout[at + 4..].to_vec(),
        trailers: Vec::new(),
    };
    Ok(Curled { answer, version: first[0].to_owned() })
}

/// curl's flags for a certificate of its own.
pub(super) fn shown(pair: &Pair) -> [&str; 4] {
    ["--cert", pair.cert.to_str().unwrap(), "--key", pair.key.to_str().unwrap()]
}
