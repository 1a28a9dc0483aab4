//! Clients over TLS: protocols, certificates on both sides, who a client is, limits and the end.

use std::{process::Command, sync::Arc, time::Duration};

use rcgen::{DistinguishedName, DnType, date_time_ymd};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::authority::{Authority, Pair, connect, curl, shown};
use crate::support::{Gate, Gateway, Start, Step, Upstream, charged, output, post, request, soon, until};

/// An authority and a gateway that it vouches for, before `upstream`.
async fn gateway(upstream: &Upstream, tls: &str, more: &str) -> (TempDir, Authority, Gateway) {
    let folder = tempfile::tempdir().unwrap();
    let ca = Authority::new(folder.path(), "ca");
    let own = ca.server("gateway", &["localhost"]);
    let tls = tls.replace("@ca", &format!("{:?}", ca.file));
    let config = format!("[listen]\ntls = {{ {}{tls} }}\n{more}\n", own.said());
    let gateway = Start::before(upstream).config(&config).start().await;
    (folder, ca, gateway)
}

// contract: listen.tls
#[tokio::test]
async fn curl_gets_a_replay_over_tls_by_http2_and_by_http1() {
    let upstream = Upstream::charging().await;
    let (_folder, ca, gateway) = gateway(&upstream, "", "").await;
    let first = curl(&gateway, &ca, "k-1", &["--http2"]).await.unwrap();
    assert_eq!((first.version.as_str(), first.answer.status), ("HTTP/2", 201));
    for (flag, version) in [("--http2", "HTTP/2"), ("--http1.1", "HTTP/1.1"), ("--tls-max", "HTTP/2")] {
        let flags: &[&str] = if flag == "--tls-max" { &[flag, "1.2", "--http2"] } else { &[flag] };
        let again = curl(&gateway, &ca, "k-1", flags).await.unwrap();
        assert_eq!(again.version, version);
        assert!(again.answer.is_replay(), "{:?}", again.answer);
        assert_eq!(again.answer.essence(), first.answer.essence());
    }
    assert_eq!(upstream.effects("k-1"), 1);
    let seen = upstream.last();
    assert_eq!(seen.header("x-forwarded-proto"), Some("https"));
    assert_eq!(seen.header("forwarded"), Some("for=127.0.0.1;proto=https"));
    // Whoever does not know the authority does not get that far.
    let other = Authority::new(&gateway.start.data(), "other");
    let error = curl(&gateway, &other, "k-2", &[]).await.err().expect("no answer");
    assert!(error.contains("60"), "{error}");
    assert_eq!(upstream.received().len(), 1);
}

#[tokio::test]
async fn openssl_sees_the_protocols_and_versions_that_are_offered() {
    let upstream = Upstream::charging().await;
    let (_folder, ca, gateway) = gateway(&upstream, "", "").await;
    let look = |more: &'static [&'static str]| {
        let mut command = Command::new("openssl");
        command.args(["s_client", "-verify_return_error", "-servername", "localhost", "-connect"]);
        command.arg(gateway.proxy.to_string()).arg("-CAfile").arg(&ca.file).args(more);
        async { String::from_utf8_lossy(&output(command).await.stdout).into_owned() }
    };
    let seen = look(&["-alpn", "h2,http/1.1"]).await;
    for part in ["ALPN protocol: h2", "TLSv1.3", "Verification: OK"] {
        assert!(seen.contains(part), "{part} in {seen}");
    }
    let seen = look(&["-alpn", "http/1.1", "-tls1_2"]).await;
    assert!(seen.contains("ALPN protocol: http/1.1") && seen.contains("TLSv1.2"), "{seen}");
    let seen = look(&["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]).await;
    assert!(seen.contains("Cipher is (NONE)"), "{seen}");
}

#[tokio::test]
async fn what_stands_in_tls_is_read_as_strictly_as_what_does_not() {
    let upstream = Upstream::charging().await;
    let (_folder, ca, gateway) = gateway(&upstream, "", "").await;
    for bad in [
        "POST / HTTP/1.1\nHost: a\r\nContent-Length: 0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1 \r\na\r\n0\r\n\r\n",
        "GET /#hidden HTTP/1.1\r\nHost: a\r\n\r\n",
    ] {
        let mut stream = connect(gateway.proxy, ca.trusting(None, &["http/1.1"])).await.unwrap();
        stream.write_all(bad.as_bytes()).await.unwrap();
        let mut said = Vec::new();
        // How it ends is the listener's business; what it says is not.
        let _end = soon("an end", stream.read_to_end(&mut said)).await;
        assert!(said.starts_with(b"HTTP/1.1 400"), "{bad:?}: {:?}", String::from_utf8_lossy(&said));
    }
    assert_eq!(upstream.received().len(), 0);
}

/// One kind of client certificate, and whether a listener that asks for one takes it.
fn kinds(ca: &Authority, other: &Authority) -> Vec<(&'static str, Option<Pair>, bool)> {
    let expired = ca.issue("expired", &[], |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
        params.distinguished_name.push(DnType::CommonName, "expired");
    });
    vec![
        ("good", Some(ca.client("good")), true),
        ("expired", Some(expired), false),
        ("another's", Some(other.client("foreign")), false),
        ("none", None, false),
    ]
}

#[tokio::test]
async fn a_client_certificate_is_verified_and_where_it_is_required_it_must_be_there() {
    let upstream = Upstream::charging().await;
    for auth in ["required", "optional"] {
        let tls = format!(", client_ca = @ca, client_auth = \"{auth}\"");
        let (folder, ca, gateway) = gateway(&upstream, &tls, "").await;
        let other = Authority::new(folder.path(), "other");
        for (kind, pair, is_taken) in kinds(&ca, &other) {
            for version in [["--tls-max", "1.3"], ["--tls-max", "1.2"]] {
                let mut flags = version.to_vec();
                flags.extend(pair.iter().flat_map(shown));
                let got = curl(&gateway, &ca, &format!("{auth}-{kind}"), &flags).await;
                let is_taken = is_taken || (kind == "none" && auth == "optional");
                assert_eq!(got.is_ok(), is_taken, "{kind} where {auth}, {version:?}: {:?}", got.err());
            }
        }
    }
    // The good one twice, and the one without where it is optional.
    assert_eq!(upstream.received().len(), 3);
}

#[tokio::test]
async fn two_certificates_are_two_callers_with_one_key_each() {
    for principal in [r#""mtls""#, r#""auto""#, r#"["mtls", "header:X-Api-Key"]"#] {
        let upstream = Upstream::charging().await;
        let more = format!("[defaults]\nscope = {{ principal = {principal} }}");
        let tls = ", client_ca = @ca, client_auth = \"optional\"";
        let (_folder, ca, gateway) = gateway(&upstream, tls, &more).await;
        let (alice, bob) = (ca.client("alice"), ca.client("bob"));
        let mut answers = Vec::new();
        for pair in [&alice, &bob] {
            let mut flags = shown(pair).to_vec();
            if principal.contains("X-Api-Key") {
                flags.extend(["--header", "X-Api-Key: shared"]);
            }
            let first = curl(&gateway, &ca, "k", &flags).await.unwrap().answer;
            let again = curl(&gateway, &ca, "k", &flags).await.unwrap().answer;
            assert!(!first.is_replay() && again.is_replay(), "{principal}: {first:?} {again:?}");
            assert_eq!(first.essence(), again.essence());
            answers.push(first.body);
        }
        assert_ne!(answers[0], answers[1], "{principal}: one caller was given the answer to another");
        assert_eq!(upstream.effects("k"), 2);
        // Without one there is nobody, or with `auto` whoever is anonymous.
        let anonymous = curl(&gateway, &ca, "k", &[]).await.unwrap().answer;
        match principal {
            r#""auto""# => assert_eq!((anonymous.status, anonymous.is_replay()), (201, false)),
            _ => assert_eq!((anonymous.status, anonymous.slug().as_str()), (400, "no-principal")),
        }
    }
}

#[tokio::test]
async fn a_certificate_without_a_subject_names_nobody() {
    let upstream = Upstream::charging().await;
    let (_folder, ca, gateway) = gateway(&upstream, ", client_ca = @ca, client_auth = \"required\"", "").await;
    let nameless =
        ca.issue("nameless", &["client.test"], |params| params.distinguished_name = DistinguishedName::new());
    let got = curl(&gateway, &ca, "k", &shown(&nameless)).await.unwrap().answer;
    assert_eq!((got.status, got.slug().as_str()), (400, "no-principal"));
    assert_eq!(upstream.received().len(), 0);
}

#[tokio::test]
async fn clients_that_never_finish_their_handshake_end_and_hold_up_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let ca = Authority::new(folder.path(), "ca");
    let own = ca.server("gateway", &["localhost"]);
    let said = onceward_server::proxy::ListenerTls {
        cert: own.cert,
        key: own.key,
        client_ca: None,
        client_auth: onceward_server::proxy::ClientAuth::Off,
    };
    let tls = onceward_server::proxy::ServerTls::load(&said, &onceward_server::proxy::Certificates::default()).unwrap();
    let mut limits = onceward_server::proxy::Limits::default();
    limits.handshake_timeout = Duration::from_millis(300);
    limits.connections = 21;
    let service = tower::service_fn(|_: http::Request<onceward_server::proxy::RequestBody>| async {
        Ok::<_, std::convert::Infallible>(http::Response::new(http_body_util::Full::new(bytes::Bytes::from("ok"))))
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let trusted = onceward_server::proxy::Trusted::default();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(onceward_server::proxy::serve_tls(listener, tls, service, limits, trusted, async {
        let _gone = stopped.await;
    }));
    let mut silent = Vec::new();
    for _ in 0..20 {
        silent.push(TcpStream::connect(address).await.unwrap());
    }
    // They hold 20 places of 21, and the accept loop none of its time.
    let mut one = connect(address, ca.trusting(None, &["http/1.1"])).await.unwrap();
    one.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut buffer = [0; 12];
    soon("an answer", one.read_exact(&mut buffer)).await.unwrap();
    assert_eq!(&buffer, b"HTTP/1.1 200");
    for mut silent in silent {
        let mut nothing = Vec::new();
        let _reset = soon("an end", silent.read_to_end(&mut nothing)).await;
        assert_eq!(nothing, b"");
    }
    // A place is free again, and one whose handshake is under way at the end does not hold up the end.
    let _late = TcpStream::connect(address).await.unwrap();
    stop.send(()).unwrap();
    let report = soon("the end", serving).await.unwrap();
    assert_eq!(report.connections_cut, 0);
}

#[tokio::test]
async fn the_drain_lets_a_request_over_tls_end() {
    let gate = Gate::shut();
    let shut = gate.clone();
    let upstream = Upstream::start(move |_, before| vec![Step::Until(shut.clone()), charged(before).into()]).await;
    let (_folder, ca, mut gateway) = gateway(&upstream, "", "").await;
    let mut stream = connect(gateway.proxy, ca.trusting(None, &["http/1.1"])).await.unwrap();
    stream.write_all(&post("/v1/payments", "k", "{}")).await.unwrap();
    upstream.reached("k", 1).await;
    gateway.terminate();
    until("the drain", || async { gateway.log().contains("stopping: finishing what runs") }).await;
    gate.open();
    let mut said = Vec::new();
    soon("the end", stream.read_to_end(&mut said)).await.expect("a proper end of TLS");
    let said = String::from_utf8(said).unwrap();
    assert!(said.starts_with("HTTP/1.1 201") && said.contains("connection: close"), "{said}");
    assert!(gateway.ended().await.success());
}

#[tokio::test]
async fn a_session_is_resumed() {
    let upstream = Upstream::charging().await;
    let (_folder, ca, gateway) = gateway(&upstream, "", "").await;
    let config = Arc::new(ca.trusting(None, &["http/1.1"]));
    for kind in [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed] {
        let mut stream = connect(gateway.proxy, (*config).clone()).await.unwrap();
        stream.write_all(&request("GET", "/", &[("Connection", "close")], "")).await.unwrap();
        let mut said = Vec::new();
        soon("the end", stream.read_to_end(&mut said)).await.unwrap();
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(kind));
    }
}
