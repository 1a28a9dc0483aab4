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

/// A route of its own for `/v1/payments`, in front of the upstream that is added.
const PAY: &str = "[[route]]\nname = \"pay\"\nmatch = { path = \"/v1/payments\" }\n";
const OTHER_SECRET: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

#[tokio::test]
async fn a_start_that_would_re_key_is_refused_and_goes_on_where_it_is_accepted() {
    let upstream = Upstream::charging().await;
    let start = Start::before(&upstream);
    let mut gateway = start.start().await;
    assert_eq!(gateway.post("/v1/payments", "k", "{}").await.status, 201);
    gateway.kill().await;

    let changed = start.clone().config(PAY);
    for _ in 0..2 {
        let (code, said) = changed.refused().await;
        assert_eq!(code, 2, "{said}");
        assert!(said.contains("default: POST /v1/payments would belong to the route pay"), "{said}");
        assert!(said.contains("--accept-rekey"), "{said}");
    }
    // The record of before is found under its earlier id, in this life of the process and in the next ones.
    let mut gateway = changed.clone().arg("--accept-rekey").start().await;
    assert!(gateway.post("/v1/payments", "k", "{}").await.is_replay());
    assert_eq!(gateway.post("/v1/payments", "k", "{\"a\":1}").await.slug(), "key-reused");
    assert_eq!(gateway.post("/v1/payments", "new", "{}").await.status, 201);
    gateway.kill().await;
    let mut gateway = changed.start().await;
    for key in ["k", "new"] {
        assert!(gateway.post("/v1/payments", key, "{}").await.is_replay(), "{key}");
    }
    gateway.kill().await;
    // And back again.
    assert_eq!(start.refused().await.0, 2);
    let gateway = start.clone().arg("--accept-rekey").start().await;
    for key in ["k", "new"] {
        assert!(gateway.post("/v1/payments", key, "{}").await.is_replay(), "{key}");
        assert_eq!(upstream.effects(key), 1);
    }
}

// contract: identity.previous
#[tokio::test]
async fn the_install_secret_changes_with_the_one_before_at_hand() {
    let upstream = Upstream::charging().await;
    let start = Start::before(&upstream);
    let mut gateway = start.start().await;
    assert_eq!(gateway.post("/v1/payments", "k", "{\"amount\":1}").await.status, 201);
    gateway.kill().await;
    let old = std::fs::read_to_string(start.data().join("onceward.secret")).unwrap();

    let alone = start.clone().env("ONCEWARD_IDENTITY__SECRET", OTHER_SECRET);
    let (code, said) = alone.refused().await;
    assert!(code == 1 && said.contains("[identity] previous"), "{said}");
    let rotated = alone.clone().env("ONCEWARD_IDENTITY__PREVIOUS", old.trim());
    let mut gateway = rotated.start().await;
    assert!(gateway.post("/v1/payments", "k", "{\"amount\":1}").await.is_replay());
    let told = gateway.post("/v1/payments", "k", "{\"amount\":2}").await;
    assert_eq!((told.slug().as_str(), upstream.effects("k")), ("key-reused", 1));
    assert_eq!(gateway.post("/v1/payments", "new", "{}").await.status, 201);
    gateway.kill().await;
    // Records of the old secret are left, so it is not to be missing yet.
    let (code, said) = alone.refused().await;
    assert!(code == 1 && said.contains("bring it back as [identity] previous"), "{said}");
    let gateway = rotated.start().await;
    assert!(gateway.post("/v1/payments", "new", "{}").await.is_replay());
    assert!(!gateway.log().contains(old.trim()) && !gateway.log().contains(OTHER_SECRET), "secrets are not shown");
}
