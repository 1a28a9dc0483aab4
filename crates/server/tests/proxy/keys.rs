//! Requests: where keys come from, how they are spelled, whose they are, and what is refused before anything is sent.

use super::support::{Answer, Gateway, Start, Upstream, basic, find, request};

async fn default_gateway() -> (Upstream, Gateway) {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream).start().await;
    (upstream, gateway)
}

/// That it was refused so, and that nothing was sent or claimed.
fn assert_refused(answer: &Answer, status: u16, slug: &str, why: &str) {
    assert_eq!((answer.status, answer.slug().as_str()), (status, slug), "{why}: {}", answer.text());
}

#[tokio::test]
async fn both_spellings_of_a_key_are_the_same_key() {
    let (upstream, gateway) = default_gateway().await;
    for (n, spellings) in [
        ["8e03978e-40d5", "\"8e03978e-40d5\""],
        ["with\\backslash", "\"with\\\\backslash\""],
        ["!#$%&'()*+-./:;<=>?@[]^_`{|}~", "\"!#$%&'()*+-./:;<=>?@[]^_`{|}~\""],
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(gateway.post("/x", spellings[0], "{}").await.status, 201, "{n}");
        assert!(gateway.post("/x", spellings[1], "{}").await.is_replay(), "{n}");
        assert_eq!(upstream.last().header("idempotency-key"), Some(spellings[0]), "as the client spelled it");
    }
    let headers = [("X-Idempotency-Key", "8e03978e-40d5"), ("Content-Type", "application/json")];
    let by_other_name = request("POST", "/x", &headers, "{}");
    assert!(gateway.ask(by_other_name).await.is_replay());
    let longest = "k".repeat(255);
    assert_eq!(gateway.post("/x", &longest, "{}").await.status, 201);
    assert_eq!(gateway.post("/x", "\"a b\"", "{}").await.status, 201, "a space inside quotes");
}

#[tokio::test]
async fn malformed_and_conflicting_keys_go_nowhere() {
    let (upstream, gateway) = default_gateway().await;
    let too_long = "k".repeat(256);
    for bad in ["", "\"\"", "a b", "\"open", "\"a\"; p=1", "\"a\\n\"", "\"a\"b", &too_long] {
        assert_refused(&gateway.post("/x", bad, "{}").await, 400, "invalid-key", &format!("{bad:?}"));
    }
    for bytes in [b"caf\xc3\xa9".as_slice(), b"\"caf\xe9\"", b"tab\there"] {
        let ask =
            [b"POST /x HTTP/1.1\r\nHost: a\r\nIdempotency-Key: ", bytes, b"\r\nContent-Length: 0\r\n\r\n"].concat();
        let answer = gateway.ask(ask).await;
        assert_refused(&answer, 400, "invalid-key", &String::from_utf8_lossy(bytes));
    }
    let key = "Idempotency-Key";
    for (headers, why) in [
        (vec![(key, "a"), (key, "b")], "two lines"),
        (vec![(key, "a"), (key, "a")], "two lines that agree"),
        (vec![(key, "a"), ("X-Idempotency-Key", "b")], "two names"),
        (vec![(key, "a, b")], "a list"),
        (vec![(key, "\"a\", \"b\"")], "a list of strings"),
    ] {
        let answer = gateway.ask(request("POST", "/x", &headers, "{}")).await;
        assert_refused(&answer, 400, "conflicting-keys", why);
    }
    let agree = [(key, "same"), ("X-Idempotency-Key", "\"same\"")];
    assert_eq!(gateway.ask(request("POST", "/x", &agree, "{}")).await.status, 201);
    assert_eq!((upstream.received().len(), gateway.records().await.len()), (1, 1));
}

#[tokio::test]
async fn safe_methods_and_others_that_no_route_asks_for_pass_untouched() {
    let (upstream, gateway) = default_gateway().await;
    for method in ["GET", "OPTIONS", "PUT", "DELETE"] {
        for n in 0..2 {
            let answer = gateway.ask(request(method, "/x", &[("Idempotency-Key", "k-1")], "")).await;
            assert_eq!((answer.status, answer.is_replay()), (201, false), "{method} {n}");
            assert_eq!(upstream.last().method, method);
        }
    }
    assert_eq!((upstream.effects("k-1"), gateway.records().await.len()), (8, 0));
    let patch = request("PATCH", "/x", &[("Idempotency-Key", "k-2")], "{}");
    gateway.ask(&patch).await;
    assert!(gateway.ask(&patch).await.is_replay());
    let other_method = gateway.ask(request("POST", "/x", &[("Idempotency-Key", "k-2")], "{}")).await;
    assert!(!other_method.is_replay(), "on the route default the method is in the scope");
    let other_path = gateway.post("/y", "k-2", "{}").await;
    assert!(!other_path.is_replay(), "and so is the path");
}

#[tokio::test]
async fn what_only_onceward_tells_an_upstream_cannot_be_forged() {
    let (upstream, gateway) = default_gateway().await;
    let forged = [
        ("Idempotency-Fence", "9"),
        ("Idempotency-Record", "forged"),
        ("Idempotency-Attempt", "77"),
        ("idempotency-fence", "10"),
    ];
    for method in ["POST", "GET", "PUT"] {
        gateway.ask(request(method, "/unprotected", &forged, "")).await;
        for (name, _) in forged {
            assert_eq!(upstream.last().header(&name.to_ascii_lowercase()), None, "{method} {name}");
        }
    }
    let mut headers = vec![("Idempotency-Key", "k-1")];
    headers.extend(forged);
    gateway.ask(request("POST", "/x", &headers, "{}")).await;
    let received = upstream.last();
    let records = gateway.records().await;
    assert_eq!(received.all("idempotency-attempt"), ["1"]);
    assert_eq!(received.all("idempotency-record"), [records[0]["record_id"].as_str().unwrap()]);
    assert_eq!(received.all("idempotency-fence"), [records[0]["fence"].as_str().unwrap()]);
}

#[tokio::test]
async fn paths_that_servers_read_in_more_than_one_way_are_refused_where_they_would_be_protected() {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream)
        .config(
            r#"
[defaults]
mode = "off"
[[route]]
name = "pay"
mode = "enforce"
match = { path = "/pay/{rest}" }
"#,
        )
        .start()
        .await;
    for path in ["/pay/%2e%2e", "/pay/.", "/x/../pay/1", "/pay/a%2Fb", "/pay/a%5cb", "/pay/%00", "/pay/.%2E"] {
        let answer = gateway.post(path, "k-1", "{}").await;
        assert_refused(&answer, 400, "invalid-path", path);
        assert_eq!(upstream.received().len(), 0, "{path}");
    }
    for path in ["/pay/%7Ealice", "/other//double", "/pay/a%20b"] {
        assert_eq!(gateway.post(path, path, "{}").await.status, 201, "{path}");
        assert_eq!(upstream.last().target, path, "forwarded as received");
    }
    // Encoded or not, an unreserved character is the same.
    assert_eq!(gateway.post("/pay/a", "k-2", "{}").await.status, 201);
    assert_eq!(upstream.effects("k-2"), 1);
    assert_eq!(gateway.ask(request("GET", "/x/../y", &[], "")).await.status, 201, "what has no effect passes");
}

// contract: route.key.from
#[tokio::test]
async fn keys_can_stand_in_the_body_and_in_the_query() {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream)
        .config(
            r#"
[[route]]
name = "json"
match = { path = "/json" }
key = { from = ["json:/meta/id", "header:Idempotency-Key"], missing = "required" }
[[route]]
name = "form"
match = { path = "/form" }
key = { from = ["form:token"], missing = "required" }
[[route]]
name = "query"
match = { path = "/query" }
key = { from = ["query:token"], missing = "required" }
"#,
        )
        .start()
        .await;
    let json = |body: &'static str| request("POST", "/json", &[("Content-Type", "application/json")], body);
    let form =
        |body: &'static str| request("POST", "/form", &[("Content-Type", "application/x-www-form-urlencoded")], body);
    for (name, ask) in [
        ("json", json("{\"meta\":{\"id\":\"j-1\"}}")),
        ("form", form("token=f%2D1&amount=5")),
        ("query", request("POST", "/query?token=q-1", &[], "{}")),
    ] {
        assert_eq!(gateway.ask(&ask).await.status, 201, "{name}");
        assert!(gateway.ask(&ask).await.is_replay(), "{name}");
    }
    assert_eq!(upstream.received().len(), 3);
    for (slug, ask) in [
        ("missing-key", json("{}")),
        ("invalid-key", json("{\"meta\":{\"id\":7}}")),
        ("missing-key", form("amount=5")),
        ("conflicting-keys", form("token=1&token=2")),
        ("conflicting-keys", request("POST", "/query?token=1&token=2", &[], "{}")),
        ("conflicting-keys", request("POST", "/json", &[("Idempotency-Key", "other")], "{\"meta\":{\"id\":\"j\"}}")),
        ("invalid-key", json("{\"meta\":{\"id\":\"a\",\"id\":\"b\"}}")),
        ("invalid-key", json("{\"meta\":")),
    ] {
        let shown = String::from_utf8_lossy(&ask).into_owned();
        let answer = gateway.ask(ask).await;
        let found = answer.slug();
        assert!(answer.status == 400 && (found == slug || found == "conflicting-keys"), "{shown}: {found}, not {slug}");
    }
    assert_eq!(upstream.received().len(), 3, "nothing was forwarded");
}

// contract: request-body-too-large, route.key.missing, route.key.strict, route.key.min_length, route.key.docs, route.fingerprint.require, route.limits.request_body, route.match.methods
#[tokio::test]
async fn a_route_can_require_a_key_and_be_strict_about_it() {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream)
        .config(
            r#"
[[route]]
name = "strict"
match = { path = "/strict" }
key = { missing = "required", strict = true, min_length = 8, docs = "https://docs.test/keys" }
fingerprint = { require = ["/amount"] }
limits = { request_body = "1KiB" }
[[route]]
name = "deletes"
match = { methods = ["DELETE", "PUT"], path = "/things/{id}" }
"#,
        )
        .start()
        .await;
    let missing = gateway.ask(request("POST", "/strict", &[], "{}")).await;
    assert_refused(&missing, 400, "missing-key", "no key");
    assert_eq!(missing.header("link"), Some("<https://docs.test/keys>; rel=\"describedby\""));
    assert_refused(&gateway.post("/strict", "12345678", "{}").await, 400, "invalid-key", "bare");
    assert_refused(&gateway.post("/strict", "\"1234567\"", "{}").await, 400, "invalid-key", "weak");
    let lacking = gateway.post("/strict", "\"12345678\"", "{}").await;
    assert_refused(&lacking, 400, "missing-identifier", "no amount");
    assert_eq!(lacking.json()["fields"][0], "/amount");
    let large = format!("{{\"amount\":\"{}\"}}", "5".repeat(2000));
    let large = gateway.post("/strict", "\"12345678\"", &large).await;
    assert_refused(&large, 413, "body-too-large", "2 KB");
    let mut client = gateway.connect().await;
    let headers = [("Idempotency-Key", "\"12345678\""), ("Transfer-Encoding", "chunked")];
    let chunked = request("POST", "/strict", &headers, "");
    let chunked = String::from_utf8(chunked).unwrap().replace("Content-Length: 0\r\n", "");
    client.send(format!("{chunked}7d0\r\n{}\r\n0\r\n\r\n", "5".repeat(2000))).await;
    assert_refused(&client.answer().await, 413, "body-too-large", "2 KB in chunks");
    assert_eq!((upstream.received().len(), gateway.records().await.len()), (0, 0));
    assert_eq!(gateway.post("/strict", "\"12345678\"", "{\"amount\":5}").await.status, 201);
    let delete = request("DELETE", "/things/7", &[("Idempotency-Key", "k-1")], "");
    gateway.ask(&delete).await;
    assert!(gateway.ask(&delete).await.is_replay());
}

// contract: route.key.missing, route.key.derived_retention
#[tokio::test]
async fn a_derived_key_is_the_request_itself() {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream)
        .config("[defaults]\nkey = { missing = \"derive\" }\nfingerprint = { strip = [\"/sent_at\"] }\n")
        .start()
        .await;
    let ask = |body: &str| request("POST", "/x", &[("Content-Type", "application/json")], body);
    let first = gateway.ask(ask("{\"amount\":5,\"sent_at\":1}")).await;
    assert_eq!((first.status, first.header("idempotency-key-source")), (201, Some("derived")));
    let again = gateway.ask(ask("{\"sent_at\":2,\"amount\":5.0}")).await;
    assert!(again.is_replay());
    assert_eq!(again.header("idempotency-key-source"), Some("derived"), "a replay says so too");
    assert!(!gateway.ask(ask("{\"amount\":6}")).await.is_replay());
    let record = &gateway.records().await[0];
    let time = |name: &str| record[name].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let kept = time("expires_at").duration_since(time("completed_at")).as_secs_f64();
    assert!((kept - 300.0).abs() < 5.0, "derived_retention is 5 min, not {kept} s");
    let with_key = gateway.post("/x", "k-1", "{\"amount\":5}").await;
    assert_eq!((with_key.is_replay(), with_key.header("idempotency-key-source")), (false, None));
}

// contract: route.forward_key
#[tokio::test]
async fn an_upstream_can_be_given_a_child_key() {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream).config("[defaults]\nforward_key = \"derived\"\n").start().await;
    gateway.post("/x", "parent-1", "{}").await;
    gateway.post("/x", "\"parent-2\"", "{}").await;
    let children: Vec<_> =
        upstream.received().iter().map(|received| received.header("idempotency-key").unwrap().to_owned()).collect();
    assert_eq!(children.iter().map(String::len).collect::<Vec<_>>(), [32, 32]);
    let expected = onceward_core::key::child_key("parent-1", "api");
    assert_eq!(children[0], expected);
    assert_ne!(children[0], children[1]);
}

// contract: route.scope.principal
#[tokio::test]
async fn one_caller_is_never_given_anothers_answer() {
    let (upstream, gateway) = default_gateway().await;
    let (alice, bob) = (basic("alice", "a"), basic("bob", "b"));
    let callers: Vec<Vec<(&str, &str)>> = vec![
        vec![],
        vec![("Authorization", &alice)],
        vec![("Authorization", &bob)],
        vec![("Authorization", "Bearer opaque-1")],
        vec![("Authorization", "ApiKey opaque-1")],
        vec![("Authorization", "Token opaque-1")],
        vec![("X-Api-Key", "opaque-1")],
        vec![("Api-Key", "opaque-1")],
        vec![("Authorization", &alice), ("X-Api-Key", "other")],
    ];
    for (n, caller) in callers.iter().enumerate() {
        let mut headers = vec![("Idempotency-Key", "shared")];
        headers.extend(caller);
        let ask = request("POST", "/x", &headers, "{}");
        let first = gateway.ask(&ask).await;
        // What wins over another credential is the caller.
        assert_eq!(first.is_replay(), n == 8, "{caller:?}");
        assert!(gateway.ask(&ask).await.is_replay(), "{caller:?}");
    }
    assert_eq!(upstream.effects("shared"), 8);
    for (name, value) in [
        ("Authorization", "AWS4-HMAC-SHA256 Credential=x"),
        ("Authorization", "Digest username=x"),
        ("Authorization", "DPoP x"),
        ("Authorization", "Signature keyId=x"),
        ("Authorization", "OAuth x"),
        ("Authorization", "Hawk id=x"),
        ("Cookie", "session=1"),
    ] {
        let headers = [("Idempotency-Key", "k-1"), (name, value)];
        let refused = gateway.ask(request("POST", "/x", &headers, "{}")).await;
        assert_refused(&refused, 400, "no-principal", value);
        let detail = refused.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains("scope.principal"), "it names the setting: {detail}");
    }
    assert_eq!(upstream.effects("k-1"), 0);
}

const SCOPED: &str = r#"
[[route]]
name = "listed"
match = { path = "/listed" }
scope = { principal = ["header:X-User", "cookie:session"] }
[[route]]
name = "shared"
match = { path = "/shared" }
scope = { principal = "none" }
[[route]]
name = "tenants"
match = { path = "/tenants" }
scope = { tenant = "header:X-Tenant", env = "header:X-Env" }
"#;

// contract: listen.trusted, route.scope.tenant, route.scope.env, route.scope.principal
#[tokio::test]
async fn principals_and_tenants_come_from_what_a_trusted_hop_says() {
    let upstream = Upstream::charging().await;
    let config = format!("[listen]\ntrusted = [\"127.0.0.0/8\"]\n{SCOPED}");
    let gateway = Start::before(&upstream).config(&config).start().await;
    let ask = async |path: &str, headers: &[(&str, &str)]| {
        let mut all = vec![("Idempotency-Key", "k-1")];
        all.extend(headers);
        gateway.ask(request("POST", path, &all, "{}")).await
    };
    let listed = |user, cookie| [("X-User", user), ("Cookie", cookie)];
    assert!(!ask("/listed", &listed("u1", "a=b; session=1")).await.is_replay());
    assert!(ask("/listed", &listed("u1", "session=1; a=c")).await.is_replay());
    assert!(!ask("/listed", &listed("u2", "session=1")).await.is_replay());
    assert!(!ask("/listed", &listed("u1", "session=2")).await.is_replay());
    assert_refused(&ask("/listed", &[("X-User", "u1")]).await, 400, "no-principal", "no cookie");
    assert_refused(&ask("/listed", &[("Cookie", "session=1")]).await, 400, "no-principal", "no header");
    assert!(!ask("/shared", &[("Authorization", "Bearer a")]).await.is_replay());
    assert!(ask("/shared", &[("Authorization", "Bearer b")]).await.is_replay(), "one principal for all");
    let tenant = |tenant, env| [("X-Tenant", tenant), ("X-Env", env)];
    assert!(!ask("/tenants", &tenant("t1", "live")).await.is_replay());
    assert!(ask("/tenants", &tenant("t1", "live")).await.is_replay());
    assert!(!ask("/tenants", &tenant("t2", "live")).await.is_replay());
    assert!(!ask("/tenants", &tenant("t1", "test")).await.is_replay());
    let records = gateway.records().await;
    let of_tenants: Vec<_> = records.iter().filter(|record| record["route"] == "tenants").collect();
    assert_eq!((of_tenants[0]["tenant"].as_str(), of_tenants[0]["env"].as_str()), (Some("t1"), Some("live")));
}

// contract: listen.trusted
#[tokio::test]
async fn what_a_stranger_says_of_principals_and_tenants_is_refused() {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream).config(SCOPED).start().await;
    for (path, headers) in [
        ("/listed", [("X-User", "u1"), ("Cookie", "session=1")]),
        ("/tenants", [("X-Tenant", "t1"), ("X-Env", "live")]),
    ] {
        let mut all = vec![("Idempotency-Key", "k-1")];
        all.extend(headers);
        let refused = gateway.ask(request("POST", path, &all, "{}")).await;
        assert_refused(&refused, 400, "untrusted-header", path);
        assert!(!refused.text().contains("u1") && !refused.text().contains("t1\""));
    }
    assert_eq!(upstream.received().len(), 0);
}

#[tokio::test]
async fn hostile_bodies_are_told_apart_byte_for_byte_and_harm_nobody() {
    let (upstream, gateway) = default_gateway().await;
    let bomb = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    let other = format!("{} {}", "[".repeat(200_000), "]".repeat(200_000));
    assert_eq!(gateway.post("/x", "bomb", &bomb).await.status, 201);
    assert!(gateway.post("/x", "bomb", &bomb).await.is_replay());
    assert_eq!(gateway.post("/x", "bomb", &other).await.slug(), "key-reused", "beyond depth 64 spaces count");
    let deep = |space: &str| format!("{}1{space}{}", "[".repeat(60), "]".repeat(60));
    gateway.post("/x", "deep", &deep("")).await;
    assert!(gateway.post("/x", "deep", &deep(" ")).await.is_replay());
    for (key, one, two) in [
        ("twins", "{\"a\":1,\"a\":2}", "{\"a\":2,\"a\":1}"),
        ("big", "9007199254740993", "9007199254740992"),
        ("huge", "1e400", "1e401"),
        ("nul", "\"\\u0000\"", "\"\\u0001\""),
        ("broken", "{\"a\":", "{\"a\":1"),
    ] {
        assert_eq!(gateway.post("/x", key, one).await.status, 201, "{key}");
        assert_eq!(gateway.post("/x", key, two).await.slug(), "key-reused", "{key}");
        assert!(gateway.post("/x", key, one).await.is_replay(), "{key}");
    }
    let large = |byte: char| format!("\"{}{byte}\"", "x".repeat(2 << 20));
    assert_eq!(gateway.post("/x", "large", &large('a')).await.status, 201);
    assert!(gateway.post("/x", "large", &large('a')).await.is_replay());
    assert_eq!(gateway.post("/x", "large", &large('b')).await.slug(), "key-reused");
    assert_eq!(upstream.received().iter().find(|r| r.key() == "large").unwrap().body.len(), (2 << 20) + 3);
    assert!(find(gateway.log().as_bytes(), b"panicked").is_none());
}

// contract: route.name, route.match.path, route.match.host, route.upstream
#[tokio::test]
async fn the_closest_route_is_taken_and_a_request_of_none_is_told_so() {
    let (one, two) = (Upstream::charging().await, Upstream::charging().await);
    let gateway = Start::new()
        .config(&format!(
            r#"
[[upstream]]
name = "one"
url = "http://{}"
[[upstream]]
name = "two"
url = "http://{}"
[[route]]
name = "orders"
match = {{ path = "/orders/{{*rest}}" }}
upstream = "one"
[[route]]
name = "pay"
match = {{ path = "/orders/{{id}}/pay", host = "shop.test" }}
upstream = "two"
"#,
            one.address, two.address
        ))
        .start()
        .await;
    let at = |host: &str, path: &str, key: &str| {
        format!("POST {path} HTTP/1.1\r\nHost: {host}\r\nIdempotency-Key: {key}\r\nContent-Length: 2\r\n\r\n{{}}")
    };
    gateway.ask(at("shop.test:8080", "/orders/7/pay", "a")).await;
    gateway.ask(at("other.test", "/orders/7/pay", "a")).await;
    gateway.ask(at("shop.test", "/orders", "b")).await;
    assert_eq!((one.received().len(), two.received().len()), (2, 1));
    // On a named route a key counts whatever the path, which is part of the request.
    assert_eq!(gateway.ask(at("other.test", "/orders/8/pay", "a")).await.slug(), "key-reused");
    let none = gateway.post("/elsewhere", "k-1", "{}").await;
    assert_refused(&none, 404, "no-route", "two upstreams and no default");
    let none = gateway.ask(request("GET", "/elsewhere", &[], "")).await;
    assert_refused(&none, 404, "no-route", "GET");
}
