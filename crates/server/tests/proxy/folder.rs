//! The data folder: what it is bound to.

use crate::support::{Start, Upstream};

#[tokio::test]
async fn a_lost_or_foreign_secret_refuses_to_start_since_every_key_would_be_new() {
    let upstream = Upstream::charging().await;
    let start = Start::before(&upstream);
    let mut gateway = start.start().await;
    assert_eq!(gateway.post("/v1/payments", "k", "{}").await.status, 201);
    gateway.kill().await;

    let secret = start.data().join("onceward.secret");
    let kept = std::fs::read_to_string(&secret).unwrap();
    std::fs::remove_file(&secret).unwrap();
    let (code, said) = start.refused().await;
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("onceward.secret: is gone") && said.contains("Bring it back"), "{said}");
    assert!(!secret.exists(), "no other secret is drawn in its place");

    std::fs::write(&secret, "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n").unwrap();
    let (code, said) = start.refused().await;
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("made with another install secret"), "{said}");

    std::fs::write(&secret, kept).unwrap();
    let gateway = start.start().await;
    assert!(gateway.post("/v1/payments", "k", "{}").await.is_replay());
    assert_eq!(upstream.effects("k"), 1);
}

#[tokio::test]
async fn a_start_whose_routes_make_other_record_ids_says_which() {
    let upstream = Upstream::charging().await;
    let start = Start::before(&upstream);
    start.start().await.kill().await;
    let changed = start.clone().config("[[route]]\nname = \"pay\"\nmatch = { path = \"/v1/payments\" }\n");
    let gateway = changed.start().await;
    let ready = gateway.admin("GET", "/readyz", &[], "").await.json();
    assert!(ready["warnings"].to_string().contains("record ids of these routes are made otherwise: pay"), "{ready}");
    let gateway = gateway.restart().await;
    let ready = gateway.admin("GET", "/readyz", &[], "").await.json();
    assert_eq!(ready["warnings"].as_array().unwrap().len(), 0, "{ready}");
}
