//! Upstreams over TLS: how they are known, what is shown to them, and what a failed handshake means.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use http_body_util::Full;
use rcgen::{DnType, date_time_ymd};
use rustls::{RootCertStore, ServerConfig, server::WebPkiClientVerifier};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::authority::{Authority, Pair};
use crate::support::{Gateway, Start, Upstream, post, soon};

/// One handshake as a front saw it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Seen {
    kind: Option<rustls::HandshakeKind>,
    protocol: Option<Vec<u8>>,
    pub(super) has_client: bool,
    name: Option<String>,
}

/// TLS in front of an upstream that knows nothing of it.
pub(super) struct Front {
    pub(super) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Front {
    pub(super) async fn start(behind: SocketAddr, config: ServerConfig) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let front = Self { address: listener.local_addr().unwrap(), seen: Arc::default() };
        let (acceptor, seen) = (TlsAcceptor::from(Arc::new(config)), Arc::clone(&front.seen));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, seen) = (acceptor.clone(), Arc::clone(&seen));
                tokio::spawn(async move {
                    let Ok(mut stream) = acceptor.accept(stream).await else { return };
                    let session = stream.get_ref().1;
                    seen.lock().unwrap().push(Seen {
                        kind: session.handshake_kind(),
                        protocol: session.alpn_protocol().map(<[u8]>::to_vec),
                        has_client: session.peer_certificates().is_some(),
                        name: session.server_name().map(ToOwned::to_owned),
                    });
                    let mut behind = TcpStream::connect(behind).await.unwrap();
                    let _ended = tokio::io::copy_bidirectional(&mut stream, &mut behind).await;
                });
            }
        });
        front
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

/// A server's side, which asks for a certificate of `clients` where they are given.
pub(super) fn side(
    own: &Pair,
    clients: Option<&Authority>,
    protocols: &[&str],
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(versions).unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(clients) => {
            use rustls::pki_types::{CertificateDer, pem::PemObject};
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(&clients.file).unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_single_cert(own.chain(), own.private()).unwrap();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    config
}

async fn gateway(front: &Front, more: &str) -> Gateway {
    let config =
        format!("[[upstream]]\nname = \"api\"\nurl = \"https://localhost:{}\"\n{more}\n", front.address.port());
    Start::new().config(&config).start().await
}

fn authority() -> (TempDir, Authority) {
    let folder = tempfile::tempdir().unwrap();
    let ca = Authority::new(folder.path(), "ca");
    (folder, ca)
}

// contract: upstream.ca
// contract: upstream.client_cert
#[tokio::test]
async fn an_upstream_is_known_by_its_authority_and_shown_our_certificate() {
    let (_folder, ca) = authority();
    let behind = Upstream::charging().await;
    let own = ca.client("gateway");
    let front = Front::start(
        behind.address,
        side(&ca.server("api", &["localhost"]), Some(&ca), &["http/1.1"], rustls::ALL_VERSIONS),
    )
    .await;
    let gateway = gateway(&front, &format!("ca = {:?}\nclient_cert = {{ {} }}", ca.file, own.said())).await;
    let first = gateway.post("/v1/payments", "k", "{}").await;
    let again = gateway.post("/v1/payments", "k", "{}").await;
    assert_eq!((first.status, again.is_replay(), behind.effects("k")), (201, true, 1));
    let seen = Seen {
        kind: Some(rustls::HandshakeKind::Full),
        protocol: Some(b"http/1.1".to_vec()),
        has_client: true,
        name: Some("localhost".to_owned()),
    };
    assert_eq!(front.seen(), [seen]);
}

/// Requests need no second handshake in full, and no second connection while the first is good.
#[tokio::test]
async fn a_session_with_an_upstream_is_resumed() {
    let (_folder, ca) = authority();
    let behind = Upstream::start(|_, _| {
        vec![crate::support::answer(201, &[("Connection", "close")], "{}").into(), crate::support::Step::Close]
    })
    .await;
    let front =
        Front::start(behind.address, side(&ca.server("api", &["localhost"]), None, &[], rustls::ALL_VERSIONS)).await;
    let gateway = gateway(&front, &format!("ca = {:?}", ca.file)).await;
    for key in ["k-1", "k-2"] {
        assert_eq!(gateway.post("/v1/payments", key, "{}").await.status, 201);
    }
    let kinds: Vec<_> = front.seen().iter().map(|seen| seen.kind).collect();
    assert_eq!(kinds, [Some(rustls::HandshakeKind::Full), Some(rustls::HandshakeKind::Resumed)]);
}

/// Behind the front, an upstream of HTTP/2 that counts.
async fn http2_behind() -> (SocketAddr, Arc<Mutex<Vec<http::Version>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen: Arc<Mutex<Vec<http::Version>>> = Arc::default();
    let kept = Arc::clone(&seen);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let kept = Arc::clone(&kept);
            let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
                kept.lock().unwrap().push(request.version());
                async { Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(Bytes::from("done")))) }
            });
            let builder = hyper_util::server::conn::auto::Builder::new(hyper_util::rt::TokioExecutor::new());
            tokio::spawn(async move {
                let _ended = builder.serve_connection(hyper_util::rt::TokioIo::new(stream), service).await;
            });
        }
    });
    (address, seen)
}

#[tokio::test]
async fn http2_is_spoken_where_the_upstream_chooses_it() {
    let (_folder, ca) = authority();
    let pair = ca.server("api", &["localhost"]);
    for (offered, version) in [
        (&["h2", "http/1.1"][..], http::Version::HTTP_2),
        (&["http/1.1"], http::Version::HTTP_11),
        (&[], http::Version::HTTP_11),
    ] {
        let (behind, versions) = http2_behind().await;
        let front = Front::start(behind, side(&pair, None, offered, rustls::ALL_VERSIONS)).await;
        let gateway = gateway(&front, &format!("ca = {:?}\nhttp2 = true", ca.file)).await;
        for key in ["k-1", "k-2", "k-1"] {
            let answer = gateway.post("/v1/payments", key, "{}").await;
            assert_eq!((answer.status, answer.text().as_str()), (200, "done"), "{offered:?}");
        }
        assert_eq!(*versions.lock().unwrap(), [version; 2], "{offered:?}");
    }
    // Where it is not asked for, it is not spoken.
    let (behind, versions) = http2_behind().await;
    let front = Front::start(behind, side(&pair, None, &["h2", "http/1.1"], rustls::ALL_VERSIONS)).await;
    let gateway = gateway(&front, &format!("ca = {:?}", ca.file)).await;
    assert_eq!(gateway.post("/v1/payments", "k", "{}").await.status, 200);
    assert_eq!(*versions.lock().unwrap(), [http::Version::HTTP_11]);
}

#[tokio::test]
async fn a_handshake_that_fails_sent_nothing_and_leaves_the_key_free() {
    let (folder, ca) = authority();
    let other = Authority::new(folder.path(), "other");
    let behind = Upstream::charging().await;
    let good = ca.server("api", &["localhost"]);
    let expired = ca.issue("expired", &["localhost"], |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
        params.distinguished_name.push(DnType::CommonName, "expired");
    });
    let foreign = other.client("foreign");
    let trusts = format!("ca = {:?}", ca.file);
    let both = rustls::ALL_VERSIONS;
    let cases = [
        ("a wrong name", side(&ca.server("wrong", &["elsewhere.test"]), None, &[], both), trusts.clone()),
        ("expired", side(&expired, None, &[], both), trusts.clone()),
        ("an unknown authority", side(&other.server("odd", &["localhost"]), None, &[], both), trusts.clone()),
        ("the system's authorities do not know it", side(&good, None, &[], both), String::new()),
        ("no certificate of ours", side(&good, Some(&ca), &[], &[&rustls::version::TLS13]), trusts.clone()),
        ("no certificate of ours, 1.2", side(&good, Some(&ca), &[], &[&rustls::version::TLS12]), trusts.clone()),
        ("no certificate of ours, h2", side(&good, Some(&ca), &["h2"], both), format!("{trusts}\nhttp2 = true")),
        (
            "a foreign certificate of ours",
            side(&good, Some(&ca), &[], &[&rustls::version::TLS13]),
            format!("{trusts}\nclient_cert = {{ {} }}", foreign.said()),
        ),
    ];
    for (what, config, more) in cases {
        let front = Front::start(behind.address, config).await;
        let gateway = gateway(&front, &more).await;
        for _ in 0..5 {
            let answer = gateway.post("/v1/payments", "k", "{}").await;
            assert_eq!((answer.status, answer.slug().as_str()), (502, "upstream-unreachable"), "{what}");
        }
        assert!(gateway.records().await.is_empty(), "{what}: the key is not free");
    }
    assert_eq!(behind.received().len(), 0);
}

#[tokio::test]
async fn a_replay_crosses_tls_on_both_sides_by_http2() {
    let (_folder, ca) = authority();
    let (behind, versions) = http2_behind().await;
    let front =
        Front::start(behind, side(&ca.server("api", &["localhost"]), None, &["h2"], rustls::ALL_VERSIONS)).await;
    let config = format!(
        "[listen]\ntls = {{ {} }}\n[[upstream]]\nname = \"api\"\nurl = \"https://localhost:{}\"\nca = {:?}\nhttp2 = true\n",
        ca.server("gateway", &["localhost"]).said(),
        front.address.port(),
        ca.file
    );
    let gateway = Start::new().config(&config).start().await;
    let first = super::authority::curl(&gateway, &ca, "k", &["--http2"]).await.unwrap();
    let again = super::authority::curl(&gateway, &ca, "k", &["--http2"]).await.unwrap();
    assert_eq!((first.version.as_str(), first.answer.status), ("HTTP/2", 200));
    assert!(again.answer.is_replay());
    assert_eq!(again.answer.essence(), first.answer.essence());
    assert_eq!(*versions.lock().unwrap(), [http::Version::HTTP_2]);
}

#[tokio::test]
async fn an_upstream_without_tls_got_nothing() {
    let behind = Upstream::charging().await;
    let (_folder, ca) = authority();
    let config = format!(
        "[[upstream]]\nname = \"api\"\nurl = \"https://{}\"\nca = {:?}\nconnect_timeout = \"2s\"\n",
        behind.address, ca.file
    );
    let gateway = Start::new().config(&config).start().await;
    let answer = soon("an answer", gateway.ask(post("/v1/payments", "k", "{}"))).await;
    assert_eq!((answer.status, answer.slug().as_str()), (502, "upstream-unreachable"));
    assert_eq!(behind.received().len(), 0);
}
