//! The configuration, changed while the process runs.

use std::path::Path;

use super::support::{Gate, Gateway, Start, Step, Upstream, answer, charged, metric, post, until};

/// A file in front of `upstream`, with `rest` after it.
fn file(upstream: &Upstream, rest: &str) -> String {
    let address = upstream.address;
    format!("[[upstream]]\nname = \"api\"\nurl = \"http://{address}\"\nmax_in_flight = 2000\n{rest}")
}

fn replace(path: &Path, text: &str) {
    let draft = path.with_extension("draft");
    std::fs::write(&draft, text).unwrap();
    std::fs::rename(&draft, path).unwrap();
}

async fn reloads(gateway: &Gateway, result: &str) -> f64 {
    let name = format!("onceward_config_reloads_total{{result=\"{result}\"}}");
    let metrics = gateway.metrics().await;
    if metrics.contains(&name) { metric(&metrics, &name) } else { 0.0 }
}

/// Until so many reloads came to `result`.
async fn reloaded(gateway: &Gateway, result: &str, count: f64) {
    until(result, async || reloads(gateway, result).await >= count).await;
}

async fn warnings(gateway: &Gateway) -> String {
    gateway.admin("GET", "/readyz", &[], "").await.json()["warnings"].to_string()
}

#[tokio::test]
async fn a_thousand_requests_in_flight_outlive_fifty_reloads() {
    const REQUESTS: usize = 1000;
    let gate = Gate::shut();
    let opened = gate.clone();
    let upstream = Upstream::start(move |_, before| vec![Step::Until(opened.clone()), charged(before).into()]).await;
    let gateway = Start::new().config(&file(&upstream, "")).start().await;
    let mut clients = Vec::with_capacity(REQUESTS);
    for number in 0..REQUESTS {
        let mut client = gateway.connect().await;
        client.send(post("/pay", &format!("k-{number}"), "{}")).await;
        clients.push(client);
    }
    until("all in flight", async || metric(&gateway.metrics().await, "onceward_in_flight ") >= 1000.0).await;
    for round in 1..=50 {
        // In turn by a signal, by a new file in its place, and by writing into it; each with other upstream words. What is
        // read while it is half written is refused, and read again when it is whole.
        let text =
            file(&upstream, &format!("connect_timeout = \"{round}s\"\n[defaults]\nretention = \"{}h\"\n", 24 + round));
        let path = gateway.start.config_file();
        match round % 3 {
            0 => replace(&path, &text),
            _ => std::fs::write(&path, text).unwrap(),
        }
        if round % 3 == 1 {
            gateway.hang_up();
        }
        reloaded(&gateway, "applied", f64::from(round)).await;
    }
    gate.open();
    for client in &mut clients {
        assert_eq!(client.answer().await.status, 201);
    }
    assert_eq!(upstream.received().len(), REQUESTS);
    assert!(gateway.post("/pay", "k-7", "{}").await.is_replay());
}

#[tokio::test]
async fn what_a_reload_says_is_in_force_for_the_next_request() {
    let (old, new) = (Upstream::charging().await, Upstream::charging().await);
    let gateway = Start::new().config(&file(&old, "[defaults]\nfingerprint = { strip = [\"/at\"] }\n")).start().await;
    assert_eq!(gateway.post("/pay", "k-1", "{\"at\":1}").await.status, 201);
    let text = file(&new, "[defaults]\nkey = { missing = \"required\" }\nmismatch_status = 409\n");
    replace(&gateway.start.config_file(), &text);
    reloaded(&gateway, "applied", 1.0).await;
    // Under the rules it was made with.
    assert!(gateway.post("/pay", "k-1", "{\"at\":2}").await.is_replay());
    let told = gateway.post("/pay", "k-1", "{\"at\":2,\"more\":1}").await;
    assert_eq!((told.status, told.slug().as_str()), (409, "key-reused"));
    assert_eq!(gateway.ask(super::support::request("POST", "/pay", &[], "{}")).await.slug(), "missing-key");
    assert_eq!(gateway.post("/pay", "k-2", "{}").await.status, 201);
    assert_eq!((old.effects("k-1"), new.effects("k-1"), new.effects("k-2")), (1, 0, 1));
}

#[tokio::test]
async fn a_link_that_is_swapped_as_kubernetes_does_is_followed() {
    let upstream = Upstream::charging().await;
    let folder = tempfile::tempdir().unwrap();
    let mounted = |version: u32, text: &str| {
        let data = folder.path().join(format!("..v{version}"));
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join("onceward.toml"), text).unwrap();
        let link = folder.path().join("..data_tmp");
        std::os::unix::fs::symlink(format!("..v{version}"), &link).unwrap();
        std::fs::rename(&link, folder.path().join("..data")).unwrap();
    };
    mounted(1, &file(&upstream, ""));
    let path = folder.path().join("onceward.toml");
    std::os::unix::fs::symlink("..data/onceward.toml", &path).unwrap();
    let gateway = Start::new().arg("--config").arg(path.to_str().unwrap()).start().await;
    for (version, status) in [(2, 409), (3, 400), (4, 422)] {
        mounted(version, &file(&upstream, &format!("[defaults]\nmismatch_status = {status}\n")));
        std::fs::remove_dir_all(folder.path().join(format!("..v{}", version - 1))).unwrap();
        reloaded(&gateway, "applied", f64::from(version - 1)).await;
        let key = format!("k-{version}");
        assert_eq!(gateway.post("/pay", &key, "{}").await.status, 201);
        assert_eq!(gateway.post("/pay", &key, "{\"a\":1}").await.status, status);
    }
}

#[tokio::test]
async fn a_bad_file_leaves_the_one_before_in_force_and_says_so() {
    let upstream = Upstream::charging().await;
    let good = file(&upstream, "[defaults]\nmismatch_status = 409\n");
    let gateway = Start::new().config(&good).start().await;
    let path = gateway.start.config_file();
    for (count, bad) in [(1.0, "[defaults]\nmismatch_sttus = 400\n"), (2.0, "[defaults]\nretention = \"1m\"\n")] {
        replace(&path, &file(&upstream, bad));
        reloaded(&gateway, "invalid", count).await;
    }
    let said = warnings(&gateway).await;
    assert!(said.contains("stays in force") && said.contains("2 × client_retries"), "{said}");
    assert_eq!(metric(&gateway.metrics().await, "onceward_config_in_force "), 0.0);
    assert_eq!(gateway.post("/pay", "k", "{}").await.status, 201);
    assert_eq!(gateway.post("/pay", "k", "{\"a\":1}").await.status, 409);
    // Away and back is no change, and what is in force is well again.
    replace(&path, &good);
    reloaded(&gateway, "unchanged", 1.0).await;
    assert!(!warnings(&gateway).await.contains("stays in force"));
    assert_eq!(metric(&gateway.metrics().await, "onceward_config_in_force "), 1.0);
}

#[tokio::test]
async fn a_changed_listener_or_store_is_refused_by_name() {
    let upstream = Upstream::charging().await;
    let start = Start::new().config(&file(&upstream, ""));
    let gateway = start.start().await;
    let path = gateway.start.config_file();
    for (count, changed, named) in [
        (1.0, "[listen]\ntrusted = [\"10.0.0.0/8\"]\n", "listen.trusted"),
        (2.0, "[store]\ndeadline = \"1s\"\n", "[store]"),
        (3.0, "[limits]\nconnections = 5\n", "limits.connections"),
        (4.0, "[admin]\ntoken = \"another-token-of-32-characters-xx\"\n", "admin.token"),
    ] {
        replace(&path, &file(&upstream, changed));
        reloaded(&gateway, "refused", count).await;
        let said = warnings(&gateway).await;
        assert!(said.contains(named) && said.contains("restart"), "{said}");
        assert!(!said.contains("another-token"), "secrets are not shown: {said}");
    }
    assert_eq!(gateway.post("/pay", "k", "{}").await.status, 201);
}

#[tokio::test]
async fn a_reload_that_would_re_key_is_refused_and_says_why() {
    let upstream = Upstream::charging().await;
    let route =
        |words: &str| file(&upstream, &format!("[[route]]\nname = \"pay\"\nmatch = {{ path = \"/pay\" }}\n{words}"));
    let gateway = Start::new().config(&route("")).start().await;
    assert_eq!(gateway.post("/pay", "k", "{}").await.status, 201);
    let path = gateway.start.config_file();
    let more = route("[[route]]\nname = \"refund\"\nmatch = { path = \"/refund\" }\n");
    for (count, changed, why) in [
        (1.0, more.as_str(), "default: POST /refund would belong to the route refund"),
        (2.0, &file(&upstream, ""), "pay: POST /pay would belong to the route default"),
        (3.0, &route("key = { from = [\"header:X-Key\"] }\n"), "pay: its key comes from elsewhere (key.from)"),
        (
            4.0,
            &route("scope = { principal = \"none\" }\n"),
            "pay: whom its keys belong to is told otherwise (scope.principal)",
        ),
    ] {
        replace(&path, changed);
        reloaded(&gateway, "refused", count).await;
        let said = warnings(&gateway).await;
        assert!(said.contains(why) && said.contains("--accept-rekey"), "{said}");
    }
    assert!(gateway.post("/pay", "k", "{}").await.is_replay());
    assert_eq!(upstream.effects("k"), 1);
    // What changes no key may change.
    replace(&path, &route("timeout = \"25s\"\n"));
    reloaded(&gateway, "applied", 1.0).await;
}

#[tokio::test]
async fn a_hang_up_without_a_file_changes_nothing() {
    let upstream = Upstream::start(|_, _| vec![answer(201, &[], "{}").into()]).await;
    let gateway = Start::before(&upstream).start().await;
    gateway.hang_up();
    reloaded(&gateway, "unchanged", 1.0).await;
    assert_eq!(gateway.post("/pay", "k", "{}").await.status, 201);
}
