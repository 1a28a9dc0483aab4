//! `onceward prove` from outside: what it finds, what it does not claim, and what it never shows.

#[cfg(test)]
#[expect(dead_code, reason = "the proxy's tests use the rest of it")]
#[path = "proxy/tls/authority.rs"]
mod authority;
#[cfg(test)]
#[expect(dead_code, reason = "the proxy's tests use the rest of it")]
#[path = "proxy/support.rs"]
mod support;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::SocketAddr;
    use std::process::Command;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use axum::Router;
    use axum::extract::{Path, State};
    use axum::response::IntoResponse;
    use axum::routing::{get, post};
    use http::{HeaderMap, StatusCode};
    use serde_json::Value;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::authority::Authority;
    use super::support::{Start, Upstream, nobody, onceward, output};

    const BODY: &str = r#"{"amount": 5, "currency": "EUR"}"#;

    /// How a command ended.
    struct Ended {
        code: i32,
        stdout: String,
        stderr: String,
    }

    impl Ended {
        fn json(&self) -> Value {
            serde_json::from_str(&self.stdout)
                .unwrap_or_else(|error| panic!("{error}: {} {}", self.stdout, self.stderr))
        }

        /// The verdicts by attack.
        fn verdicts(&self) -> BTreeMap<String, String> {
            let found = self.json();
            let attacks = found["attacks"].as_array().unwrap().iter();
            attacks.map(|row| (text(&row["attack"]), text(&row["verdict"]))).collect()
        }
    }

    fn text(value: &Value) -> String {
        value.as_str().unwrap().to_owned()
    }

    /// Runs it with a body, short waits and these arguments.
    async fn prove(endpoint: &str, args: &[&str]) -> Ended {
        prove_with(endpoint, &[], args).await
    }

    async fn prove_with(endpoint: &str, environment: &[(&str, &str)], args: &[&str]) -> Ended {
        let mut command = onceward();
        command.args(["prove", endpoint, "--body", BODY, "--settle", "60ms"]).args(args);
        command.envs(environment.iter().copied());
        let output = output(command).await;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ended {
            code: output.status.code().expect("an exit code"),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// The sample API of `proxy --demo`, with nothing before it.
    async fn sample_api() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(onceward_server::demo::serve(listener, std::future::pending()));
        address
    }

    // ===== endpoints =====

    /// What an endpoint does with a request, told how many came before it with its key.
    type Script = Arc<dyn Fn(usize) -> (bool, u16) + Send + Sync>;

    #[derive(Clone)]
    struct Api {
        script: Script,
        delay: Duration,
        seen: Arc<Mutex<BTreeMap<String, usize>>>,
        effects: Arc<Mutex<BTreeMap<String, u64>>>,
        /// Headers of every question to the counter.
        asked: Arc<Mutex<Vec<HeaderMap>>>,
    }

    async fn pay(State(api): State<Api>, headers: HeaderMap) -> impl IntoResponse {
        let key = headers.get("idempotency-key").map_or(String::new(), |key| key.to_str().unwrap().to_owned());
        let before = {
            let mut seen = api.seen.lock().unwrap();
            let count = seen.entry(key.clone()).or_default();
            *count += 1;
            *count - 1
        };
        tokio::time::sleep(api.delay).await;
        let (takes_effect, status) = (api.script)(before);
        if takes_effect {
            *api.effects.lock().unwrap().entry(key).or_default() += 1;
        }
        (StatusCode::from_u16(status).unwrap(), [("location", "/total")], "{}")
    }

    /// An endpoint at `/pay`, with its total at `/total` and the effects of a key at `/by/KEY`.
    async fn api(delay: Duration, script: impl Fn(usize) -> (bool, u16) + Send + Sync + 'static) -> (Api, SocketAddr) {
        let api = Api {
            script: Arc::new(script),
            delay,
            seen: Arc::default(),
            effects: Arc::default(),
            asked: Arc::default(),
        };
        let total = |State(api): State<Api>, headers: HeaderMap| async move {
            api.asked.lock().unwrap().push(headers);
            let total: u64 = api.effects.lock().unwrap().values().sum();
            ([("x-effects", total.to_string())], format!("{{\"total\":{total}}}"))
        };
        let by_key = |State(api): State<Api>, Path(key): Path<String>| async move {
            match api.effects.lock().unwrap().get(&key) {
                Some(count) => format!("{{\"total\":{count}}}").into_response(),
                None => StatusCode::NOT_FOUND.into_response(),
            }
        };
        let router = Router::new().route("/pay", post(pay)).route("/total", get(total)).route("/by/{key}", get(by_key));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = axum::serve(listener, router.with_state(api.clone()));
        tokio::spawn(async move { serving.await });
        (api, address)
    }

    /// Says these bytes to whoever asks, and closes.
    async fn says(bytes: Vec<u8>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let bytes = bytes.clone();
                tokio::spawn(async move {
                    let mut request = [0; 4096];
                    let _read = stream.read(&mut request).await;
                    let _said = stream.write_all(&bytes).await;
                });
            }
        });
        address
    }

    // ===== what it finds =====

    #[tokio::test]
    async fn the_bare_sample_api_takes_effect_twice_and_the_printed_commands_show_it() {
        let address = sample_api().await;
        let url = format!("http://{address}/v1/payments");
        let ended =
            prove(&url, &["--effects-url", &url, "--effects-pointer", "/count", "--rounds", "1", "--json"]).await;
        assert_eq!(ended.code, 1, "{}", ended.stderr);
        let verdicts = ended.verdicts();
        for attack in ["repeat", "race", "other-body", "other-body-race", "key-quotes", "header-case", "cut-answer"] {
            assert_eq!(verdicts[attack], "double", "{attack}: {}", ended.stdout);
        }
        // Two keys are two operations, and half a request is none.
        assert_eq!((verdicts["near-keys"].as_str(), verdicts["cut-request"].as_str()), ("ok", "ok"));
        let found = ended.json();
        assert_eq!(found["verdict"], "double");
        let count = || async {
            let (mut command, pointer) = (Command::new("curl"), "/count");
            command.args(["-sS", &url]);
            let ledger: Value = serde_json::from_slice(&output(command).await.stdout).unwrap();
            ledger.pointer(pointer).and_then(Value::as_u64).unwrap()
        };
        for row in found["attacks"].as_array().unwrap().iter().filter(|row| row["verdict"] == "double") {
            let steps: Vec<String> = row["rounds"][0]["reproduce"].as_array().unwrap().iter().map(text).collect();
            // What leaves in the middle of a request may be too fast to have an effect; those are shown, not run.
            if ["lost-answer", "lost-race"].contains(&row["attack"].as_str().unwrap()) {
                continue;
            }
            let before = count().await;
            let mut shell = Command::new("sh");
            shell.args(["-c", &steps.join("\n")]);
            let ran = output(shell).await;
            let effects = count().await - before;
            assert!(effects > 1, "{}: {effects} effects by\n{}\n{ran:?}", row["attack"], steps.join("\n"));
        }
    }

    #[tokio::test]
    async fn behind_onceward_nothing_is_found_by_a_total_or_by_key() {
        let address = sample_api().await;
        let gateway = Start::before_address(address).start().await;
        let url = format!("http://{}/v1/payments", gateway.proxy);
        let by_key = format!("http://{address}/v1/payments/by-key/{{key}}");
        for counter in [&url, &by_key] {
            let args = ["--effects-url", counter, "--effects-pointer", "/count", "--rounds", "2", "--timeout", "25s"];
            let ended = prove(&url, &[&args[..], &["--json"]].concat()).await;
            assert_eq!(ended.code, 0, "{} {}", ended.stdout, ended.stderr);
            for (attack, verdict) in ended.verdicts() {
                let expected = if attack == "empty-key" && *counter == by_key { "skipped" } else { "ok" };
                assert_eq!(verdict, expected, "{attack}: {}", ended.stdout);
            }
        }
    }

    #[tokio::test]
    async fn a_key_that_stays_locked_and_one_that_answers_without_an_effect_are_refusals() {
        // Whoever comes again is told for ever that the first is in flight.
        let (_api, address) = api(Duration::ZERO, |before| if before == 0 { (true, 201) } else { (false, 409) }).await;
        let (pay, by_key) = (format!("http://{address}/pay"), format!("http://{address}/by/{{key}}"));
        let args = ["--effects-url", &by_key, "--effects-pointer", "/total", "--rounds", "1", "--timeout", "500ms"];
        let args = [&args[..], &["--attacks", "repeat,lost-answer", "--json"]].concat();
        let ended = prove(&pay, &args).await;
        assert_eq!((ended.code, ended.verdicts()["repeat"].as_str()), (1, "refused"), "{}", ended.stdout);
        // Half of the keys are answered as if something were done.
        let every_other = Arc::new(Mutex::new(0_usize));
        let (_api, address) = api(Duration::ZERO, move |before| {
            let mut count = every_other.lock().unwrap();
            *count += usize::from(before == 0);
            (before == 0 && *count < 3, 201)
        })
        .await;
        let (pay, by_key) = (format!("http://{address}/pay"), format!("http://{address}/by/{{key}}"));
        let args = ["--effects-url", &by_key, "--effects-pointer", "/total", "--rounds", "1", "--attacks", "repeat"];
        let ended = prove(&pay, &[&args[..], &["--json"]].concat()).await;
        assert_eq!((ended.code, ended.verdicts()["repeat"].as_str()), (1, "refused"), "{}", ended.stdout);
        assert!(ended.stdout.contains("nothing took effect"), "{}", ended.stdout);
    }

    #[tokio::test]
    async fn a_slow_endpoint_is_waited_for_or_said_to_be_too_slow() {
        let (_api, address) = api(Duration::from_millis(400), |before| (before < 2, 201)).await;
        let (pay, total) = (format!("http://{address}/pay"), format!("http://{address}/total"));
        let counted = ["--effects-url", &total, "--effects-header", "X-Effects", "--rounds", "1", "--json"];
        let ended = prove(&pay, &[&counted[..], &["--attacks", "repeat,race"]].concat()).await;
        assert_eq!(ended.code, 1, "{} {}", ended.stdout, ended.stderr);
        assert_eq!(ended.verdicts()["repeat"], "double");
        let ended = prove(&pay, &[&counted[..], &["--timeout", "100ms"]].concat()).await;
        assert_eq!(ended.code, 2, "{} {}", ended.stdout, ended.stderr);
        assert!(ended.stderr.contains("no answer in time") && ended.stderr.contains("--timeout"), "{}", ended.stderr);
    }

    // ===== what it does not claim =====

    #[tokio::test]
    async fn a_counter_that_cannot_be_read_or_does_not_count_makes_it_unknown() {
        let (_api, address) = api(Duration::ZERO, |before| (before == 0, 201)).await;
        let (pay, total) = (format!("http://{address}/pay"), format!("http://{address}/total"));
        let down = format!("http://{}/total", nobody().await);
        let failing = says(b"HTTP/1.1 500 Oh\r\nContent-Length: 1\r\n\r\n3".to_vec()).await;
        let constant = says(b"HTTP/1.1 200 OK\r\nX-Effects: 3\r\nContent-Length: 1\r\n\r\n3".to_vec()).await;
        let broken = says(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n3".to_vec()).await;
        let [failing, constant, broken] = [failing, constant, broken].map(|address| format!("http://{address}/"));
        let used = format!("{total}?k={{key}}");
        for (counter, at, told) in [
            (&down, ["--effects-pointer", "/total"], "no connection"),
            (&failing, ["--effects-pointer", ""], "answers 500"),
            (&broken, ["--effects-pointer", ""], "broke off"),
            (&constant, ["--effects-pointer", ""], "does not move"),
            (&constant, ["--effects-header", "X-Effects"], "does not move"),
            (&constant, ["--effects-pointer", "/total"], "no whole number"),
            (&total, ["--effects-header", "X-Other"], "no header"),
            (&pay, ["--effects-pointer", "/total"], "answers 405"),
            (&used, ["--effects-pointer", "/total"], "a key that was never sent"),
        ] {
            let args = [&["--effects-url", counter][..], &at, &["--timeout", "2s", "--rounds", "1", "--json"]].concat();
            let ended = prove(&pay, &args).await;
            assert_eq!(ended.code, 2, "{counter} {at:?}: {} {}", ended.stdout, ended.stderr);
            assert!(ended.stderr.contains(told), "{told}: {}", ended.stderr);
            assert_eq!(ended.json()["verdict"], "inconclusive");
            assert!(ended.verdicts().values().all(|verdict| verdict == "inconclusive"), "{}", ended.stdout);
        }
    }

    #[tokio::test]
    async fn nonsense_is_no_answer_and_a_redirect_is_not_followed() {
        let (counting, address) = api(Duration::ZERO, |before| (before == 0, 307)).await;
        let total = format!("http://{address}/total");
        let mut endless = b"HTTP/1.1 200 OK\r\n".to_vec();
        endless.extend("X: y\r\n".repeat(20_000).bytes());
        let mut chunks = b"HTTP/1.1 201 Made\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
        chunks.extend(b"ffffffffffffffff\r\n");
        let mut urls = Vec::new();
        for (bytes, told) in [
            (b"SSH-2.0-OpenSSH_9.6\r\n".to_vec(), "not HTTP"),
            (endless, "not HTTP"),
            (Vec::new(), "closed without an answer"),
            (b"HTTP/1.1 999 What\r\n\r\n".to_vec(), "not HTTP"),
            (b"HTTP/1.1 201 Made\r\nContent-Length: -5\r\n\r\n".to_vec(), "not HTTP"),
            (b"HTTP/1.1 201 Made\r\nContent-Length: 10\r\n\r\nhalf".to_vec(), "broke off"),
            // Taken as far as it is read: what it claims to have done is not there.
            (chunks, "does not move"),
        ] {
            urls.push((format!("http://{}/", says(bytes).await), told));
        }
        urls.push((format!("http://{}/", nobody().await), "no connection"));
        urls.push((format!("http://{address}/pay"), "answered 307"));
        for (url, told) in urls {
            let args = ["--effects-url", &total, "--effects-pointer", "/total", "--timeout", "3s", "--rounds", "1"];
            let ended = prove(&url, &args).await;
            assert_eq!(ended.code, 2, "{url} {told}: {} {}", ended.stdout, ended.stderr);
            assert!(ended.stderr.contains(told), "{told}: {}", ended.stderr);
            assert!(ended.stdout.contains("it cannot be told"), "{}", ended.stdout);
        }
        // Followed, it would have been a second request under the key.
        assert!(counting.seen.lock().unwrap().values().all(|count| *count == 1));
    }

    #[tokio::test]
    async fn wrong_usage_is_2_and_says_what_is_wrong_without_a_credential() {
        let counted = ["--effects-url", "http://127.0.0.1:1/", "--effects-pointer", "/count"];
        for (url, more, told) in [
            ("http://user:hunter2@127.0.0.1:1/", &[][..], "--header"),
            ("127.0.0.1:1", &[], "http://"),
            ("http://127.0.0.1:1/", &["--header", "hunter2"], "Name: value"),
            ("http://127.0.0.1:1/", &["--header", "Content-Length: 3"], "Content-Length"),
            ("http://127.0.0.1:1/", &["--header", "Idempotency-Key: k"], "drawn"),
            ("http://127.0.0.1:1/", &["--other-body", BODY], "the same"),
            ("http://127.0.0.1:1/", &["--other-body", "@/nonexistent"], "/nonexistent"),
            ("http://127.0.0.1:1/", &["--method", "HEAD"], "HEAD"),
            ("https://127.0.0.1:1/", &["--cacert", "/nonexistent"], "/nonexistent"),
            ("http://127.0.0.1:1/", &["--junit", "/nonexistent/prove.xml"], "/nonexistent/prove.xml"),
        ] {
            let ended = prove(url, &[&counted[..], more].concat()).await;
            assert_eq!(ended.code, 2, "{url} {more:?}: {} {}", ended.stdout, ended.stderr);
            assert!(ended.stderr.contains(told) && !ended.stderr.contains("hunter2"), "{told}: {}", ended.stderr);
        }
        let mut bodiless = onceward();
        bodiless.args(["prove", "http://127.0.0.1:1/"]).args(counted).args(["--attacks", "cut-request"]);
        let ended = output(bodiless).await;
        assert_eq!(ended.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&ended.stderr).contains("no body to cut"));
    }

    // ===== what it shows =====

    #[tokio::test]
    async fn credentials_are_shown_as_variables_and_go_to_no_other_origin() {
        let (api_of_pay, address) = api(Duration::ZERO, |_| (true, 201)).await;
        let (counting, other) = api(Duration::ZERO, |_| (true, 201)).await;
        // Both count the same.
        let (pay, total) = (format!("http://{address}/pay"), format!("http://{address}/total"));
        let elsewhere = format!("http://{other}/total");
        let folder = tempfile::tempdir().unwrap();
        let junit = folder.path().join("prove.xml");
        let args = ["--header", "Authorization: env:TOKEN", "--header", "X-Api-Key: hunter2", "--rounds", "1"];
        let args = [&args[..], &["--effects-pointer", "/total", "--attacks", "repeat"]].concat();
        let environment = [("TOKEN", "Bearer hunter2")];
        let with = |more: &[&str]| {
            let args: Vec<String> = args.iter().chain(more).map(|arg| (*arg).to_owned()).collect();
            let pay = pay.clone();
            async move {
                let args: Vec<&str> = args.iter().map(String::as_str).collect();
                prove_with(&pay, &environment, &args).await
            }
        };
        let said = with(&["--effects-url", &total, "--junit", junit.to_str().unwrap()]).await;
        assert_eq!(said.code, 1, "{} {}", said.stdout, said.stderr);
        assert!(
            said.stdout.contains(r#"-H "Authorization: $AUTHORIZATION" -H "X-Api-Key: $X_API_KEY""#),
            "{}",
            said.stdout
        );
        let xml = std::fs::read_to_string(&junit).unwrap();
        assert!(xml.contains(r#"tests="2" failures="1" errors="0" skipped="0""#), "{xml}");
        assert!(xml.contains("name=\"repeat\">\n<failure") && xml.contains("$AUTHORIZATION"), "{xml}");
        let json = with(&["--effects-url", &total, "--json"]).await;
        assert!(json.stdout.contains("$AUTHORIZATION"));
        for shown in [&said.stdout, &said.stderr, &xml, &json.stdout, &json.stderr] {
            assert!(!shown.contains("hunter2"), "{shown}");
        }
        let asked = api_of_pay.asked.lock().unwrap().clone();
        assert!(!asked.is_empty() && asked.iter().all(|headers| headers["authorization"] == "Bearer hunter2"));
        let _ = with(&["--effects-url", &elsewhere]).await;
        let asked = counting.asked.lock().unwrap().clone();
        assert!(!asked.is_empty() && asked.iter().all(|headers| !headers.contains_key("authorization")));
        let _ = with(&["--effects-url", &elsewhere, "--effects-send", "Authorization: Bearer other"]).await;
        let asked = counting.asked.lock().unwrap().clone();
        assert!(asked.iter().any(|headers| headers.get("authorization").is_some_and(|value| value == "Bearer other")));
    }

    #[tokio::test]
    async fn over_tls_the_certificate_is_checked_unless_it_is_said_otherwise() {
        let upstream = Upstream::charging().await;
        let folder = tempfile::tempdir().unwrap();
        let (ca, other) = (Authority::new(folder.path(), "ca"), Authority::new(folder.path(), "other"));
        let own = ca.server("gateway", &["localhost"]);
        let config = format!("[listen]\ntls = {{ {} }}\n", own.said());
        let gateway = Start::before(&upstream).config(&config).start().await;
        let url = format!("https://localhost:{}/v1/payments", gateway.proxy.port());
        // The metric of the admin listener would do as a counter too; the sample counts for itself.
        let (_api, counter) = api(Duration::ZERO, |_| (false, 200)).await;
        let total = format!("http://{counter}/total");
        let args = ["--effects-url", &total, "--effects-pointer", "/total", "--timeout", "5s", "--rounds", "1"];
        for (trust, told) in [
            (vec!["--cacert", ca.file.to_str().unwrap()], "the counter does not move"),
            (vec!["--insecure"], "the counter does not move"),
            (vec!["--cacert", other.file.to_str().unwrap()], "no connection"),
        ] {
            let ended = prove(&url, &[&args[..], &trust].concat()).await;
            assert_eq!(ended.code, 2, "{trust:?}: {}", ended.stderr);
            assert!(ended.stderr.contains(told), "{trust:?}: {}", ended.stderr);
        }
        assert_eq!(upstream.received().len(), 2);
    }
}
