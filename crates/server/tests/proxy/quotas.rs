//! What a tenant may take: fresh keys beyond it are refused, whatever was asked before is answered.

use futures_util::future::join_all;

use super::support::{Answer, Gate, Gateway, Start, Step, Upstream, answer, charged, metric, request};

const TENANTS: &str = "[listen]\ntrusted = [\"127.0.0.1/32\"]\n[defaults]\nscope.tenant = \"header:X-Tenant\"\n";

async fn pay(gateway: &Gateway, tenant: &str, key: &str) -> Answer {
    let headers = [("X-Tenant", tenant), ("Idempotency-Key", key)];
    gateway.ask(request("POST", "/pay", &headers, "{}")).await
}

/// What is over the quota is told so, claims nothing and sends nothing.
async fn refused(gateway: &Gateway, upstream: &Upstream, tenant: &str, key: &str, words: &str) -> u64 {
    let over = pay(gateway, tenant, key).await;
    assert_eq!((over.status, over.slug().as_str()), (429, "quota-exceeded"), "{over:?}");
    assert!(over.json()["retryable"] == true && over.text().contains(words), "{over:?}");
    assert_eq!(upstream.effects(key), 0);
    over.header("retry-after").expect("when to come back").parse().expect("in seconds")
}

// contract: tenant-over-quota, quota.claims_per_second, quota.burst, quota.tenant
#[tokio::test]
async fn a_tenant_beyond_its_rate_gets_no_fresh_key_and_the_others_do() {
    let upstream = Upstream::charging().await;
    // A rate at which nothing is refilled while this runs is not to be had: the burst of one tenant is spent by many at
    // once, the other one's is enough for all.
    let config = format!(
        "{TENANTS}[quota]\nclaims_per_second = 1\nburst = 3\n\
         [[quota.tenant]]\nname = \"big\"\nclaims_per_second = 1000\nburst = 500\n"
    );
    let gateway = Start::before(&upstream).config(&config).start().await;
    let flood = |tenant: &'static str| {
        let gateway = &gateway;
        join_all((0..100).map(move |n| async move { pay(gateway, tenant, &format!("{tenant}-{n}")).await }))
    };
    let small = flood("small").await;
    let (taken, over): (Vec<_>, Vec<_>) = small.iter().partition(|answer| answer.status == 201);
    assert!(taken.len() >= 3 && over.len() >= 60, "{} taken", taken.len());
    assert!(over.iter().all(|answer| answer.slug() == "quota-exceeded"));
    let ran = (0..100).filter(|n| upstream.effects(&format!("small-{n}")) > 0).count();
    assert_eq!(ran, taken.len(), "what was refused was not sent");
    assert!(flood("big").await.iter().all(|answer| answer.status == 201), "another tenant has its own");
    // Repeats take nothing: all of those that were taken, again and again, are answered.
    for n in (0..100).filter(|n| upstream.effects(&format!("small-{n}")) > 0) {
        for _ in 0..3 {
            assert!(pay(&gateway, "small", &format!("small-{n}")).await.is_replay());
        }
    }
    let metrics = gateway.metrics().await;
    assert!(metric(&metrics, "onceward_over_quota_total{limit=\"rate\"}") >= 60.0);
    assert!(!metrics.contains("small"), "no tenant is in the metrics");
}

// contract: tenant-over-quota, quota.live_records, quota.tenant
#[tokio::test]
async fn a_tenant_with_as_many_records_as_it_may_have_gets_no_fresh_key_until_one_is_gone() {
    let gate = Gate::shut();
    let held = gate.clone();
    let upstream = Upstream::start(move |received, before| match received.key() {
        "held" => vec![Step::Until(held.clone()), charged(before).into()],
        _ => vec![charged(before).into()],
    })
    .await;
    let config = format!("{TENANTS}[quota]\nlive_records = 3\n[[quota.tenant]]\nname = \"tiny\"\nlive_records = 1\n");
    let gateway = Start::before(&upstream).config(&config).start().await;
    let first = pay(&gateway, "acme", "k-1").await;
    assert_eq!(first.status, 201);
    let running = pay(&gateway, "acme", "held");
    let test = async {
        upstream.reached("held", 1).await;
        assert_eq!(pay(&gateway, "acme", "k-3").await.status, 201);
        assert!(refused(&gateway, &upstream, "acme", "k-4", "quota.live_records").await >= 1);
        assert_eq!(pay(&gateway, "umbrella", "k-4").await.status, 201, "another tenant is not concerned");
        assert!(pay(&gateway, "acme", "k-1").await.is_replay());
        gate.open();
    };
    let (ran, ()) = tokio::join!(running, test);
    assert_eq!(ran.status, 201, "what runs finishes");
    assert_eq!(pay(&gateway, "tiny", "k-1").await.status, 201);
    refused(&gateway, &upstream, "tiny", "k-2", "quota.live_records").await;
    // It is known after a restart too.
    let gateway = gateway.restart().await;
    refused(&gateway, &upstream, "acme", "k-5", "quota.live_records").await;
    let token = format!("Bearer {}", gateway.token());
    let records = gateway.records().await;
    let gone = records.iter().find(|record| record["tenant"] == "acme").expect("it has three");
    let path = format!("/records/{}", gone["record_id"].as_str().expect("an id"));
    let forgotten = gateway.admin("DELETE", &path, &[("Authorization", &token)], "").await;
    assert!(forgotten.status < 300, "{forgotten:?}");
    assert_eq!(pay(&gateway, "acme", "k-5").await.status, 201);
}

// contract: tenant-over-quota, quota.bytes, quota.tenant
#[tokio::test]
async fn a_tenant_whose_records_take_too_much_room_gets_no_fresh_key() {
    // Of no shorter form, for stores that compress.
    let mut random = fastrand::Rng::with_seed(7);
    let body: Vec<u8> = (0..6 << 10).map(|_| random.u8(..)).collect();
    let upstream = Upstream::start(move |_, _| vec![answer(201, &[], &body).into()]).await;
    let config = format!("{TENANTS}[quota]\nbytes = \"10KiB\"\n[[quota.tenant]]\nname = \"big\"\nbytes = \"1MiB\"\n");
    let gateway = Start::before(&upstream).config(&config).start().await;
    for key in ["k-1", "k-2"] {
        assert_eq!(pay(&gateway, "acme", key).await.status, 201);
    }
    refused(&gateway, &upstream, "acme", "k-3", "quota.bytes").await;
    for n in 0..5 {
        assert_eq!(pay(&gateway, "big", &format!("k-{n}")).await.status, 201);
    }
    assert!(pay(&gateway, "acme", "k-2").await.is_replay());
}

// contract: tenant-over-quota, store.max_records
#[tokio::test]
async fn no_tenant_takes_more_than_half_of_a_bounded_store_unless_it_is_alone_or_told_so() {
    let upstream = Upstream::charging().await;
    let config = format!("{TENANTS}[store]\nmax_records = 6\n");
    let gateway = Start::before(&upstream).config(&config).start().await;
    for n in 0..3 {
        assert_eq!(pay(&gateway, "flood", &format!("k-{n}")).await.status, 201);
    }
    refused(&gateway, &upstream, "flood", "k-3", "half of the store").await;
    assert_eq!(pay(&gateway, "acme", "k-3").await.status, 201);

    let alone = Start::before(&upstream).config("[store]\nmax_records = 6\n").start().await;
    for n in 0..6 {
        assert_eq!(alone.post("/pay", &format!("alone-{n}"), "{}").await.status, 201);
    }
}

// contract: quota.claims_per_second
#[tokio::test]
async fn a_quota_is_changed_while_the_process_runs() {
    let upstream = Upstream::charging().await;
    let start = Start::before(&upstream).config(&format!("{TENANTS}[quota]\nlive_records = 1\n"));
    let gateway = start.start().await;
    assert_eq!(pay(&gateway, "acme", "k-1").await.status, 201);
    refused(&gateway, &upstream, "acme", "k-2", "quota.live_records").await;
    let file = start.config_file();
    let text = std::fs::read_to_string(&file).expect("reading it").replace("live_records = 1", "live_records = 2");
    std::fs::write(&file, text).expect("writing it");
    gateway.hang_up();
    super::support::until("the new quota", || async { pay(&gateway, "acme", "k-2").await.status == 201 }).await;
    refused(&gateway, &upstream, "acme", "k-3", "quota.live_records").await;
}
