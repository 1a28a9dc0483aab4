//! Questions over TLS: `auth` and `probe` at a server that is also an upstream are asked as that upstream is.

use super::{
    authority::Authority,
    upstreams::{Front, side},
};
use crate::support::{Start, Step, Upstream, answer, post};

#[tokio::test]
async fn whoever_is_an_upstream_too_is_asked_under_its_authority_and_shown_our_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let (ca, stranger) = (Authority::new(folder.path(), "ca"), Authority::new(folder.path(), "stranger"));
    let behind = Upstream::start(|received, _| match received.method.as_str() {
        "POST" => vec![Step::Close],
        _ => vec![answer(200, &[], "of the books").into()],
    })
    .await;
    let front = async |own: &Authority| {
        let pair = own.server("api", &["localhost"]);
        Front::start(behind.address, side(&pair, Some(&ca), &["http/1.1"], rustls::ALL_VERSIONS)).await
    };
    let (known, unknown) = (front(&ca).await, front(&stranger).await);
    let own = ca.client("gateway");
    let config = |asked: u16| {
        let (ca, own, port) = (&ca.file, own.said(), known.address.port());
        format!(
            r#"
[[upstream]]
name = "api"
url = "https://localhost:{port}"
ca = {ca:?}
client_cert = {{ {own} }}
[defaults]
auth = {{ url = "https://localhost:{asked}/check" }}
on_unknown = ["probe"]
probe = {{ url = "https://localhost:{asked}/by/{{record}}", executed = [200], quiesce = "0s" }}
"#
        )
    };
    let gateway = Start::new().config(&config(known.address.port())).start().await;
    assert_eq!(gateway.post("/pay", "k-1", "{}").await.status, 502);
    let settled = gateway.ask(post("/pay", "k-1", "{}")).await;
    assert_eq!((settled.status, settled.text().as_str(), settled.is_replay()), (200, "of the books", true));
    let asked: Vec<String> = behind.received().iter().map(|received| received.method.clone()).collect();
    assert_eq!(asked, ["GET", "POST", "GET"], "checked, sent, and looked up; the second check was remembered");
    assert!(known.seen().iter().all(|seen| seen.has_client));

    // One that nobody vouches for is not asked, and nothing is claimed.
    let gateway = Start::new().config(&config(unknown.address.port())).start().await;
    let refused = gateway.post("/pay", "k-2", "{}").await;
    assert_eq!((refused.status, refused.slug().as_str()), (503, "auth-unavailable"));
    assert_eq!((behind.effects("k-2"), gateway.records().await.len()), (0, 0));
}
