//! `release_when` behind load balancers: the sample configurations of `deploy/` in the real programs, and the rules of
//! `docs/load-balancers.md` as they stand there.

use std::{
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
};

use super::support::{Gate, Gateway, Received, Start, Step, Upstream, answer, charged, nobody, post, until};

/// A file of the repository.
fn file(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The lines of a configuration that the document gives for what stands behind this load balancer.
fn documented(name: &str) -> String {
    let document = file("docs/load-balancers.md");
    let block = document.split("```toml\n").find(|block| block.starts_with(&format!("# behind {name}\n")));
    block.unwrap_or_else(|| panic!("no lines for {name}")).split("```").next().unwrap().to_owned()
}

/// A load balancer of a sample configuration; killed when dropped.
struct Balancer {
    address: SocketAddr,
    child: Child,
    _folder: tempfile::TempDir,
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _ended = self.child.wait();
    }
}

/// Starts `program` on the sample with its two addresses changed, and waits until it takes connections.
async fn balancer(program: &str, api: SocketAddr) -> Balancer {
    let address = nobody().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("balancer.conf");
    let sample = if program == "nginx" { file("deploy/nginx.conf") } else { file("deploy/haproxy.cfg") };
    let text = sample.replace("127.0.0.1:8000", &address.to_string()).replace("127.0.0.1:9000", &api.to_string());
    assert!(text.contains(&address.to_string()) && text.contains(&api.to_string()), "the sample has other addresses");
    // Where a package keeps its temporary files, only root may write.
    let temporary =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|name| format!("{name}_temp_path {name};"));
    let text = text.replace("http {", &format!("http {{ access_log off; {}", temporary.concat()));
    std::fs::write(&path, text).unwrap();
    let folder_path = folder.path().display().to_string();
    let mut command = Command::new(if Path::new("/usr/sbin").join(program).exists() {
        format!("/usr/sbin/{program}")
    } else {
        program.to_owned()
    });
    if program == "nginx" {
        let settings = "daemon off; master_process off; pid nginx.pid; error_log stderr;";
        command.args(["-p", &folder_path, "-e", "stderr", "-g", settings]).arg("-c").arg(&path);
    } else {
        command.args(["-db", "-q", "-f"]).arg(&path);
    }
    let child = command.stdin(Stdio::null()).spawn().unwrap_or_else(|error| {
        panic!("{program}: {error}; `cargo xtask test tests` installs it, or apt-get install {program}")
    });
    let balancer = Balancer { address, child, _folder: folder };
    until("the load balancer", async || tokio::net::TcpStream::connect(address).await.is_ok()).await;
    balancer
}

/// An API that is overloaded itself by `/503`, lies by `/liar`, breaks off by `/breaks`, and else charges.
fn api(received: &Received, before: usize) -> Vec<Step> {
    match received.target.as_str() {
        "/503" => vec![answer(503, &[], "the API's own").into()],
        "/liar" => vec![answer(503, &[("X-Not-Forwarded", "1")], "the API's own").into()],
        "/breaks" => vec![Step::Close],
        _ => vec![charged(before).into()],
    }
}

/// What the API itself says, or does not get to say, stays an unknown outcome.
async fn the_apis_own_failures_are_unknown(gateway: &Gateway, upstream: &Upstream) {
    for path in ["/503", "/liar", "/breaks"] {
        // What was not forwarded is released, so that a limit of the load balancer is waited for here.
        until("the API", async || {
            gateway.post(path, path, "{}").await;
            upstream.effects(path) == 1
        })
        .await;
        assert_eq!(gateway.post(path, path, "{}").await.slug(), "outcome-unknown", "{path}");
        assert_eq!(upstream.effects(path), 1, "{path}");
    }
}

// contract: route.record.release_when
#[tokio::test]
async fn the_503_of_nginx_itself_releases_the_key_and_the_apis_own_does_not() {
    let upstream = Upstream::start(api).await;
    let nginx = balancer("nginx", upstream.address).await;
    let gateway = Start::before_address(nginx.address).config(&documented("nginx")).start().await;
    // Its limit is one a second: of a few at once, one passes.
    let mut refused = Vec::new();
    for n in 0..4 {
        let key = format!("k-{n}");
        let answer = gateway.post("/pay", &key, "{}").await;
        match answer.status {
            201 => assert_eq!(upstream.effects(&key), 1),
            503 => {
                assert_eq!(answer.header("x-not-forwarded"), Some("1"), "nginx's own");
                assert_eq!(upstream.effects(&key), 0);
                refused.push(key);
            }
            other => panic!("{other}: {answer:?}"),
        }
    }
    assert!(!refused.is_empty(), "the limit was not reached");
    assert_eq!(gateway.records().await.len(), 4 - refused.len(), "what nginx refused left no record");
    for key in &refused {
        until("the next attempt", async || gateway.post("/pay", key, "{}").await.status == 201).await;
        assert_eq!(upstream.effects(key), 1);
        assert_eq!(upstream.last().header("idempotency-attempt"), Some("1"));
    }
    the_apis_own_failures_are_unknown(&gateway, &upstream).await;
}

#[tokio::test]
async fn the_502_of_nginx_without_a_server_releases_the_key() {
    let gone = nobody().await;
    let nginx = balancer("nginx", gone).await;
    let gateway = Start::before_address(nginx.address).config(&documented("nginx")).start().await;
    let refused = gateway.post("/pay", "k-1", "{}").await;
    assert_eq!((refused.status, refused.header("x-not-forwarded")), (502, Some("1")));
    assert_eq!(gateway.records().await.len(), 0);
    let upstream = Upstream::on(tokio::net::TcpListener::bind(gone).await.unwrap(), api);
    until("the next attempt", async || gateway.post("/pay", "k-1", "{}").await.status == 201).await;
    assert_eq!(upstream.effects("k-1"), 1);
}

// contract: route.record.release_when
#[tokio::test]
async fn the_503_of_haproxy_itself_releases_the_key_and_the_apis_own_does_not() {
    let gate = Gate::shut();
    let held = gate.clone();
    let upstream = Upstream::start(move |received, before| match received.target.as_str() {
        "/slow" => vec![Step::Until(held.clone()), charged(before).into()],
        _ => api(received, before),
    })
    .await;
    let haproxy = balancer("haproxy", upstream.address).await;
    let gateway = Start::before_address(haproxy.address).config(&documented("HAProxy")).start().await;
    let mut slow = gateway.connect().await;
    slow.send(post("/slow", "slow", "{}")).await;
    upstream.reached("slow", 1).await;
    // One at a time: the next waits in the queue, in vain.
    let refused = gateway.post("/pay", "k-1", "{}").await;
    assert_eq!((refused.status, refused.header("x-not-forwarded")), (503, Some("1")));
    assert_eq!((upstream.effects("k-1"), gateway.records().await.len()), (0, 1));
    gate.open();
    assert_eq!(slow.answer().await.status, 201);
    until("the next attempt", async || gateway.post("/pay", "k-1", "{}").await.status == 201).await;
    assert_eq!(upstream.effects("k-1"), 1);
    the_apis_own_failures_are_unknown(&gateway, &upstream).await;
    // And a server that is gone.
    drop(upstream);
    until("the end of the API", async || {
        let refused = gateway.post("/pay", "k-2", "{}").await;
        refused.status == 503 && refused.header("x-not-forwarded") == Some("1")
    })
    .await;
    assert!(gateway.records().await.iter().all(|record| record["state"] != "in_flight"));
}

// contract: route.record.release_when
#[tokio::test]
async fn the_503_of_an_overloaded_envoy_releases_the_key_and_the_apis_own_does_not() {
    let upstream = Upstream::start(|received, before| {
        let headers: &[(&str, &str)] = match (received.target.as_str(), before) {
            // As a circuit breaker answers: nothing was sent on, so no time of the API's is told.
            ("/overloaded", 0) => &[("x-envoy-overloaded", "true"), ("server", "envoy")],
            ("/own", _) => &[("x-envoy-upstream-service-time", "7"), ("server", "envoy")],
            _ => return vec![charged(before).into()],
        };
        vec![answer(503, headers, "").into()]
    })
    .await;
    let gateway = Start::before(&upstream).config(&documented("Envoy")).start().await;
    assert_eq!(gateway.post("/overloaded", "k-1", "{}").await.status, 503);
    assert_eq!(gateway.records().await.len(), 0);
    assert_eq!(gateway.post("/overloaded", "k-1", "{}").await.status, 201, "the next attempt runs");
    assert_eq!(gateway.post("/own", "k-2", "{}").await.status, 503);
    assert_eq!(gateway.post("/own", "k-2", "{}").await.slug(), "outcome-unknown");
    assert_eq!(upstream.effects("k-2"), 1);
}
