//! Certificates that change while requests come.

use std::{
    os::unix::fs::symlink,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};

use super::authority::{Authority, Pair, connect, curl, shown};
use crate::support::{Gateway, Start, Upstream, until};

/// What the gateway shows to a new client.
async fn shows(gateway: &Gateway, ca: &Authority, pair: &Pair) -> bool {
    let stream = connect(gateway.proxy, ca.trusting(None, &["h2"])).await.unwrap();
    let shown = stream.get_ref().1.peer_certificates().expect("a certificate");
    shown.first() == pair.chain().first()
}

/// As Kubernetes mounts a secret: the files are links through `..data`, which is swapped in one step.
fn mount(folder: &Path, name: &str, pair: &Pair) {
    let version = folder.join(name);
    std::fs::create_dir_all(&version).unwrap();
    std::fs::copy(&pair.cert, version.join("tls.crt")).unwrap();
    std::fs::copy(&pair.key, version.join("tls.key")).unwrap();
    let draft = folder.join("..data_tmp");
    symlink(name, &draft).unwrap();
    std::fs::rename(&draft, folder.join("..data")).unwrap();
}

/// Connections that were open before go on, each with a request at a time, while the certificate is swapped twice and
/// new clients get the new one. Not one request fails, and what cannot be used changes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_costs_no_connection_and_a_bad_one_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Authority::new(folder.path(), "ca");
    let pairs: Vec<Pair> = ["one", "two", "three"].iter().map(|name| ca.server(name, &["localhost"])).collect();
    let mounted = folder.path().join("mounted");
    std::fs::create_dir(&mounted).unwrap();
    mount(&mounted, "..v1", &pairs[0]);
    for file in ["tls.crt", "tls.key"] {
        symlink(Path::new("..data").join(file), mounted.join(file)).unwrap();
    }
    let live = Pair { cert: mounted.join("tls.crt"), key: mounted.join("tls.key") };
    let upstream = Upstream::charging().await;
    let config = format!("[listen]\ntls = {{ {} }}\n", live.said());
    let gateway = Start::before(&upstream).config(&config).start().await;
    assert!(shows(&gateway, &ca, &pairs[0]).await);

    let (enough, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut clients = Vec::new();
    for client in 0..4 {
        let stream = connect(gateway.proxy, ca.trusting(None, &["h2"])).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let (enough, answered) = (Arc::clone(&enough), Arc::clone(&answered));
        clients.push(tokio::spawn(async move {
            for number in 0.. {
                if enough.load(Ordering::Relaxed) {
                    break;
                }
                let request = http::Request::post("https://localhost/v1/payments")
                    .header("idempotency-key", format!("k-{client}-{number}"))
                    .body(Full::new(Bytes::from("{}")))
                    .unwrap();
                let answer = sender.send_request(request).await.expect("its connection goes on");
                assert_eq!(answer.status(), 201);
                answer.into_body().collect().await.unwrap();
                answered.fetch_add(1, Ordering::Relaxed);
            }
        }));
    }
    let more = || {
        let (answered, before) = (Arc::clone(&answered), answered.load(Ordering::Relaxed));
        async move { until("more answers", || async { answered.load(Ordering::Relaxed) > before + 20 }).await }
    };
    more().await;
    mount(&mounted, "..v2", &pairs[1]);
    until("the second certificate", || shows(&gateway, &ca, &pairs[1])).await;
    more().await;
    // One whose key is another's, and then no files at all: the second stays.
    let mixed = Pair { cert: pairs[2].cert.clone(), key: pairs[0].key.clone() };
    mount(&mounted, "..v3", &mixed);
    until("a word about it", || async { gateway.log().contains("is not the key of the certificate") }).await;
    assert!(shows(&gateway, &ca, &pairs[1]).await);
    std::fs::remove_file(mounted.join("..data")).unwrap();
    until("a word about it", || async { gateway.log().contains("cannot be read") }).await;
    assert!(shows(&gateway, &ca, &pairs[1]).await);
    mount(&mounted, "..v4", &pairs[2]);
    until("the third certificate", || shows(&gateway, &ca, &pairs[2])).await;
    more().await;
    enough.store(true, Ordering::Relaxed);
    for client in clients {
        client.await.unwrap();
    }
    let log = gateway.log();
    assert!(log.contains("a certificate was not taken; the one before stays in force"), "{log}");
    assert_eq!(log.matches("is not the key of the certificate").count(), 1, "told once, not at each look");
}

#[tokio::test]
async fn an_authority_of_clients_that_is_taken_away_counts_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let (ca, new) = (Authority::new(folder.path(), "ca"), Authority::new(folder.path(), "new"));
    let clients = folder.path().join("clients.pem");
    std::fs::copy(&ca.file, &clients).unwrap();
    let upstream = Upstream::charging().await;
    let config = format!(
        "[listen]\ntls = {{ {}, client_ca = {clients:?}, client_auth = \"required\" }}\n",
        ca.server("gateway", &["localhost"]).said()
    );
    let gateway = Start::before(&upstream).config(&config).start().await;
    let (old, fresh) = (ca.client("old"), new.client("fresh"));
    assert_eq!(curl(&gateway, &ca, "k-1", &shown(&old)).await.unwrap().answer.status, 201);
    assert!(curl(&gateway, &ca, "k-2", &shown(&fresh)).await.is_err());
    std::fs::copy(&new.file, &clients).unwrap();
    until("the new authority", || async { curl(&gateway, &ca, "k-3", &shown(&fresh)).await.is_ok() }).await;
    assert!(curl(&gateway, &ca, "k-4", &shown(&old)).await.is_err());
}

/// The handle that a reload of the whole configuration calls: everything at once, and all that is wrong.
#[tokio::test]
async fn a_reload_by_hand_reads_all_files_and_tells_what_is_wrong() {
    use onceward_server::proxy::{Certificates, ClientAuth, ClientTls, ListenerTls, ServerTls, UpstreamTls};
    let folder = tempfile::tempdir().unwrap();
    let ca = Authority::new(folder.path(), "ca");
    let live = ca.server("live", &["localhost"]);
    let certificates = Certificates::default();
    let said =
        ListenerTls { cert: live.cert.clone(), key: live.key.clone(), client_ca: None, client_auth: ClientAuth::Off };
    let _listener = ServerTls::load(&said, &certificates).unwrap();
    let said = UpstreamTls { ca: Some(ca.file.clone()), client_cert: None };
    let upstream = ClientTls::load("api", &said, &certificates).unwrap();
    certificates.reload().unwrap();
    std::fs::write(&live.key, "nonsense").unwrap();
    std::fs::write(&ca.file, "nonsense").unwrap();
    let errors = certificates.reload().unwrap_err();
    let keys: Vec<_> = errors.0.iter().map(|error| error.key).collect();
    assert_eq!(keys, ["key", "ca"], "{errors}");
    // What is not in use any more is not read any more.
    drop(upstream);
    live.becomes(&ca.server("next", &["localhost"]));
    certificates.reload().unwrap();
}
