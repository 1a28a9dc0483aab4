//! The command line from outside: what it finds, what it changes, and how it ends.
#[cfg(test)]
#[expect(dead_code, reason = "the proxy's tests use the rest of it")]
#[path = "proxy/support.rs"]
mod support;

#[cfg(test)]
mod tests {
    use std::process::Output;

    use serde_json::{Value, json};

    use super::support::{Gateway, Start, Step, Upstream, basic, charged, onceward, output, output_of, request};

    const JSON: (&str, &str) = ("Content-Type", "application/json");

    /// An upstream that breaks off where the path says so.
    async fn upstream() -> Upstream {
        Upstream::start(|received, before| match received.target.as_str() {
            "/breaks" => vec![Step::Close],
            _ => vec![charged(before).into()],
        })
        .await
    }

    const ROUTES: &str = r#"
[[route]]
name = "pay"
match = { path = "/pay" }
[[route]]
name = "breaks"
match = { path = "/breaks" }
"#;

    async fn run(args: &[&str]) -> Output {
        run_with(args, "").await
    }

    async fn run_with(args: &[&str], stdin: &str) -> Output {
        let mut command = onceward();
        command.args(args);
        output_of(command, stdin.into()).await
    }

    /// Runs it, checks the exit code, and gives stdout and stderr.
    async fn ends(code: i32, args: &[&str]) -> (String, String) {
        let output = run(args).await;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{args:?}\n{stdout}\n{stderr}");
        (stdout, stderr)
    }

    async fn json_of(args: &[&str]) -> Value {
        let (stdout, _) = ends(0, args).await;
        serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}"))
    }

    fn data(gateway: &Gateway) -> String {
        gateway.start.data().display().to_string()
    }

    #[tokio::test]
    async fn records_are_found_by_folder_file_and_address_and_look_the_same() {
        let upstream = upstream().await;
        let gateway = Start::before(&upstream).config(ROUTES).start().await;
        let caller = basic("alice", "secret");
        gateway.post("/pay", "k-1", "{\"amount\":5}").await;
        gateway.post("/breaks", "k-2", "{}").await;
        let headers = [("Idempotency-Key", "k-3"), ("Authorization", &caller), JSON];
        gateway.ask(request("POST", "/pay", &headers, "{}")).await;
        gateway.post("/elsewhere", "k-4", "{}").await;
        let (folder, admin) = (data(&gateway), format!("http://{}", gateway.admin));
        let file = gateway.start.config_file().display().to_string();
        let by_folder = json_of(&["keys", "list", "--data", &folder, "--json"]).await;
        let by_address = json_of(&["keys", "list", "--admin", &admin, "--json"]).await;
        let both = json_of(&["keys", "list", "--admin", &admin, "--data", &folder, "--json"]).await;
        let file_and_folder = json_of(&["keys", "list", "--config", &file, "--data", &folder, "--json"]).await;
        assert_eq!(by_folder["records"].as_array().unwrap().len(), 4);
        assert!(by_folder == by_address && by_folder == both && by_folder == file_and_folder);
        let unknown = json_of(&["keys", "list", "--state", "unknown", "--data", &folder, "--json"]).await;
        let [unknown] = &unknown["records"].as_array().unwrap()[..] else { panic!("{unknown}") };
        let members = [
            "record_id",
            "tenant",
            "env",
            "route",
            "state",
            "attempt",
            "fence",
            "claimed_at",
            "lease_until",
            "completed_at",
            "expires_at",
            "status",
            "fingerprint",
        ];
        let found: Vec<&str> = unknown.as_object().unwrap().keys().map(String::as_str).collect();
        assert!(members.iter().all(|member| found.contains(member)) && found.len() == members.len(), "{found:?}");
        assert!(unknown["fence"].is_string());
        assert_eq!((&unknown["route"], &unknown["state"]), (&json!("breaks"), &json!("unknown")));
        let of_route = json_of(&["keys", "list", "--route", "pay", "--since", "1h", "--data", &folder, "--json"]).await;
        assert_eq!(of_route["records"].as_array().unwrap().len(), 2);
        let none = json_of(&["keys", "list", "--since", "2099-01-01T00:00:00Z", "--data", &folder, "--json"]).await;
        assert_eq!(none["records"], json!([]));
        // One, by its id or by its key.
        let one = json_of(&["keys", "get", "--key", "k-1", "--data", &folder, "--json"]).await;
        assert_eq!((&one["route"], &one["status"], &one["state"]), (&json!("pay"), &json!(201), &json!("completed")));
        let id = one["record_id"].as_str().unwrap();
        assert_eq!(json_of(&["keys", "get", id, "--data", &folder, "--json"]).await, one);
        let named = ["keys", "get", "--key", "k-3", "--route", "pay", "--authorization", &caller, "--data", &folder];
        let (text, _) = ends(0, &named).await;
        assert!(text.contains("record_id") && text.contains("completed"), "{text}");
        let (_, told) = ends(1, &["keys", "get", "--key", "k-3", "--data", &folder]).await;
        assert!(told.contains("--authorization"), "{told}");
        let on_default = ["keys", "get", "--key", "k-4", "--route", "default POST /elsewhere", "--data", &folder];
        ends(0, &on_default).await;
        let (table, _) = ends(0, &["keys", "list", "--data", &folder]).await;
        assert_eq!(table.lines().count(), 5, "{table}");
        assert!(!table.contains("k-1"), "no key is shown");
    }

    #[tokio::test]
    async fn wrong_usage_is_2_and_what_is_not_there_is_1() {
        let upstream = upstream().await;
        let gateway = Start::before(&upstream).config(ROUTES).start().await;
        let folder = data(&gateway);
        let other = Start::before(&upstream).start().await;
        let (folder_of_other, admin_of_other) = (data(&other), format!("http://{}", other.admin));
        let nowhere = "/nonexistent/onceward";
        let id = "A".repeat(43);
        let begins = |with: &str| format!("{with}{}", "A".repeat(41));
        gateway.post("/pay", "k-1", "{}").await;
        let there = gateway.records().await[0]["record_id"].as_str().unwrap().to_owned();
        for (code, args, told) in [
            (2, vec!["keys", "list", "--admin", &admin_of_other, "--data", &folder], "differ"),
            (2, vec!["keys", "list", "--data", nowhere], nowhere),
            (2, vec!["keys", "list", "--state", "odd", "--data", &folder], "odd"),
            (2, vec!["keys", "list", "--since", "yesterday", "--data", &folder], "24h"),
            (2, vec!["keys", "get", "--data", &folder], "--key"),
            (2, vec!["keys", "get", "short", "--data", &folder], "43 characters"),
            (2, vec!["keys", "get", "--key", "k", "--route", "default", "--data", &folder], "default POST"),
            (1, vec!["keys", "get", &id, "--data", &folder], "no such record"),
            (1, vec!["keys", "get", &begins("-v"), "--data", &folder], "no such record"),
            (1, vec!["keys", "get", &begins("--"), "--data", &folder], "no such record"),
            (1, vec!["keys", "get", "--data", &folder, &begins("-h")], "no such record"),
            (2, vec!["keys", "get", "--dat", &folder], "unexpected argument"),
            (1, vec!["keys", "get", "--key", "k-9", "--data", &folder_of_other], "no record"),
            (1, vec!["keys", "list", "--admin", "http://127.0.0.1:1"], "does not answer"),
            (2, vec!["keys", "resolve", &id, "--as", "maybe", "--data", &folder], "maybe"),
            (2, vec!["keys", "resolve", &id, "--as", "not-executed", "--status", "200", "--data", &folder], "--status"),
            (2, vec!["keys", "resolve", "--as", "executed", "--data", &folder], "--key"),
            (2, vec!["keys", "resolve", "--state", "completed", "--as", "failed", "--data", &folder], "completed"),
            (2, vec!["keys", "forget", &there, "--token", "wrong", "--data", &folder], "Authorization"),
            (2, vec!["frobnicate"], "frobnicate"),
            (2, vec![], "Usage"),
        ] {
            let (stdout, stderr) = ends(code, &args).await;
            assert!(stderr.contains(told), "{args:?}: {stderr}");
            assert_eq!(stdout, "", "{args:?}");
        }
    }

    #[tokio::test]
    async fn an_unknown_outcome_is_settled_in_each_of_three_ways() {
        let upstream = upstream().await;
        let gateway = Start::before(&upstream).config(ROUTES).start().await;
        let folder = data(&gateway);
        for key in ["executed", "not-executed", "failed", "bare"] {
            assert_eq!(gateway.post("/breaks", key, "{}").await.status, 502);
        }
        let body = gateway.start.data().with_file_name("answer.json");
        std::fs::write(&body, "{\"id\":7}").unwrap();
        let at = format!("@{}", body.display());
        let resolve = async |key: &str, more: &[&str]| {
            let mut args = vec!["keys", "resolve", "--key", key, "--route", "breaks", "--data", &folder, "--json"];
            args.extend(more);
            json_of(&args).await
        };
        let would = resolve("executed", &["--as", "executed", "--dry-run"]).await;
        assert_eq!(would["records"][0]["state"], "unknown");
        assert_eq!(gateway.post("/breaks", "executed", "{}").await.slug(), "outcome-unknown", "nothing was done");
        let done = resolve("executed", &["--as", "executed", "--status", "201", "--body", &at]).await;
        assert_eq!(done["records"][0]["state"], "completed");
        let replay = gateway.post("/breaks", "executed", "{}").await;
        assert_eq!((replay.status, replay.text().as_str()), (201, "{\"id\":7}"));
        assert!(replay.is_replay() && replay.header("content-type") == Some("application/json"), "{replay:?}");
        assert_eq!(upstream.effects("executed"), 1);
        resolve("bare", &["--as", "executed"]).await;
        let replay = gateway.post("/breaks", "bare", "{}").await;
        assert_eq!((replay.status, replay.is_replay(), replay.body.len()), (200, true, 0));
        resolve("failed", &["--as", "failed"]).await;
        assert_eq!(gateway.post("/breaks", "failed", "{}").await.slug(), "failed");
        resolve("not-executed", &["--as", "not-executed"]).await;
        assert_eq!(gateway.post("/breaks", "not-executed", "{}").await.status, 502, "it runs again");
        assert_eq!(upstream.effects("not-executed"), 2);
        assert_eq!(upstream.last().header("idempotency-attempt"), Some("2"));
        let (_, told) = ends(1, &["keys", "resolve", "--key", "executed", "--as", "failed", "--data", &folder]).await;
        assert!(!told.is_empty(), "what is settled is not settled otherwise");
        let metrics = gateway.metrics().await;
        let line = "onceward_unknown_outcomes_total{route=\"breaks\",settled_by=\"operator\"} 4";
        assert!(metrics.lines().any(|found| found == line), "{metrics}");
    }

    #[tokio::test]
    async fn many_are_settled_at_once_and_one_is_forgotten() {
        let upstream = upstream().await;
        let gateway = Start::before(&upstream).config(ROUTES).start().await;
        let folder = data(&gateway);
        for n in 0..3 {
            gateway.post("/breaks", &format!("b-{n}"), "{}").await;
        }
        gateway.post("/pay", "p-1", "{}").await;
        let many = ["keys", "resolve", "--state", "unknown", "--route", "breaks", "--as", "failed", "--data", &folder];
        let would = json_of(&[&many[..], &["--dry-run", "--json"]].concat()).await;
        assert_eq!(would["records"].as_array().unwrap().len(), 3);
        assert_eq!(gateway.records().await.iter().filter(|record| record["state"] == "unknown").count(), 3);
        let done = json_of(&[&many[..], &["--json"]].concat()).await;
        assert!(done["records"].as_array().unwrap().iter().all(|record| record["state"] == "failed"), "{done}");
        assert_eq!(json_of(&[&many[..], &["--json"]].concat()).await["records"], json!([]));
        let forget = ["keys", "forget", "--key", "p-1", "--route", "pay", "--data", &folder];
        let (said, _) = ends(0, &[&forget[..], &["--dry-run"]].concat()).await;
        assert!(said.contains("would be forgotten"), "{said}");
        assert!(gateway.post("/pay", "p-1", "{}").await.is_replay());
        ends(0, &forget).await;
        assert!(!gateway.post("/pay", "p-1", "{}").await.is_replay(), "the key is new again");
    }

    #[tokio::test]
    async fn a_record_that_was_settled_as_not_executed_is_listed_as_such() {
        let upstream = upstream().await;
        let gateway = Start::before(&upstream).config(ROUTES).start().await;
        let folder = data(&gateway);
        gateway.post("/breaks", "k-1", "{}").await;
        ends(0, &["keys", "resolve", "--state", "unknown", "--as", "not-executed", "--data", &folder]).await;
        for (state, count) in [("not_executed", 1), ("unknown", 0)] {
            let list = json_of(&["keys", "list", "--state", state, "--data", &folder, "--json"]).await;
            assert_eq!(list["records"].as_array().unwrap().len(), count, "{state}: {list}");
        }
    }

    /// Runs a command with a terminal for its output, and gives what it wrote there.
    async fn on_a_terminal(args: &[&str]) -> String {
        let quoted: Vec<String> = args.iter().map(|arg| format!("'{arg}'")).collect();
        let mut command = std::process::Command::new("script");
        let line = format!("{} {}", env!("CARGO_BIN_EXE_onceward"), quoted.join(" "));
        command.args(["--quiet", "--return", "--command", &line, "/dev/null"]).env("TERM", "xterm");
        let output = output(command).await;
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[tokio::test]
    async fn long_work_shows_how_far_it_is_on_a_terminal_and_nowhere_else() {
        let upstream = upstream().await;
        let gateway = Start::before(&upstream).config(ROUTES).start().await;
        let folder = data(&gateway);
        let many = ["keys", "resolve", "--state", "unknown", "--as", "failed", "--data", &folder];
        for n in 0..3 {
            gateway.post("/breaks", &format!("a-{n}"), "{}").await;
        }
        let shown = on_a_terminal(&many).await;
        assert!(shown.contains("/3 records, "), "{shown:?}");
        for n in 0..3 {
            gateway.post("/breaks", &format!("b-{n}"), "{}").await;
        }
        let (_, told) = ends(0, &many).await;
        assert_eq!(told, "3 records settled\n");
    }

    /// Goal: a bulk that meets a record it cannot settle goes on, and says so. Method: an admin listener that lists
    /// two and refuses the first.
    #[tokio::test]
    async fn a_record_that_cannot_be_settled_does_not_stop_the_others_and_is_told() {
        let ids = ["A".repeat(43), format!("{}E", "B".repeat(42))];
        let listed: Vec<Value> = ids.iter().map(|id| json!({ "record_id": id, "state": "unknown" })).collect();
        let first = ids[0].clone();
        let admin = Upstream::start(move |received, _| {
            let (status, body) = match received.method.as_str() {
                "GET" => (200, json!({ "records": listed, "next": null })),
                _ if received.target.contains(&first) => (409, json!({ "detail": "The record is completed." })),
                _ => (200, json!({ "record_id": received.target.split('/').nth(2), "state": "failed" })),
            };
            vec![super::support::answer(status, &[JSON], body.to_string()).into()]
        })
        .await;
        let url = format!("http://{}", admin.address);
        let many = ["keys", "resolve", "--state", "unknown", "--as", "failed", "--admin", &url];
        let (stdout, told) = ends(1, &many).await;
        assert!(stdout.contains(&ids[1]) && !stdout.contains(&ids[0]), "{stdout}");
        assert!(told.contains(&format!("{}: The record is completed.", ids[0])), "{told}");
        assert!(told.contains("1 of 2 records were not settled"), "{told}");
        let (stdout, _) = ends(1, &[&many[..], &["--json"]].concat()).await;
        let said: Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!((&said["failed"][0]["record_id"], &said["untried"]), (&json!(ids[0]), &json!(0)));
    }

    /// What a real bash offers after `line`, with the completions of `onceward completions bash`.
    async fn completed(line: &str) -> Vec<String> {
        let words: Vec<&str> = line.split(' ').collect();
        let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
        let script = format!(
            "source <('{}' completions bash)\nCOMP_WORDS=({})\nCOMP_CWORD={}\n\
             _onceward onceward '{}' '{}'\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n",
            env!("CARGO_BIN_EXE_onceward"),
            quoted.join(" "),
            words.len() - 1,
            words[words.len() - 1],
            words[words.len() - 2],
        );
        let mut command = std::process::Command::new("bash");
        command.args(["--norc", "--noprofile", "-s"]);
        let output = output_of(command, script.into()).await;
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap().lines().map(ToOwned::to_owned).collect()
    }

    #[tokio::test]
    async fn a_real_bash_completes_commands_flags_and_values() {
        for (line, offered) in [
            ("onceward pro", "proxy"),
            ("onceward keys res", "resolve"),
            ("onceward config sch", "schema"),
            ("onceward proxy --accept-l", "--accept-loss"),
            ("onceward keys list --state unk", "unknown"),
            ("onceward keys resolve --as not", "not-executed"),
        ] {
            let found = completed(line).await;
            assert!(found.iter().any(|word| word == offered), "{line}: {found:?}");
        }
    }

    #[tokio::test]
    async fn a_closed_store_is_opened_for_the_command_and_left_well() {
        let upstream = upstream().await;
        let mut gateway = Start::before(&upstream).config(ROUTES).start().await;
        let first = gateway.post("/pay", "k-1", "{}").await;
        gateway.post("/breaks", "k-2", "{}").await;
        gateway.kill().await;
        let (folder, file) = (data(&gateway), gateway.start.config_file().display().to_string());
        let list = json_of(&["keys", "list", "--data", &folder, "--json"]).await;
        assert_eq!(list["records"].as_array().unwrap().len(), 2);
        // Without the file the routes are not known: the key is named with its route.
        let one = json_of(&["keys", "get", "--key", "k-1", "--route", "pay", "--data", &folder, "--json"]).await;
        assert_eq!(one["state"], "completed");
        let resolve = ["keys", "resolve", "--key", "k-2", "--config", &file, "--data", &folder, "--as", "executed"];
        ends(0, &resolve).await;
        let admin = format!("http://{}", gateway.admin);
        let (_, told) = ends(2, &["keys", "list", "--data", &folder, "--admin", &admin]).await;
        assert!(told.contains("differ"), "{told}");
        let gateway = gateway.start.clone().start().await;
        let replay = gateway.post("/pay", "k-1", "{}").await;
        assert!(replay.is_replay() && replay.essence() == first.essence());
        assert_eq!(gateway.post("/breaks", "k-2", "{}").await.status, 200);
        assert_eq!(upstream.effects("k-2"), 1);
    }

    /// `key explain --json` of a captured request.
    async fn explained(config: &str, request: &str) -> Value {
        let output = run_with(&["key", "explain", "--config", config, "--json"], request).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    #[tokio::test]
    async fn a_captured_request_is_explained_as_it_is_treated() {
        let upstream = upstream().await;
        let config = r#"
[[route]]
name = "pay"
match = { path = "/pay" }
fingerprint = { strip = ["/sent_at", "query:ts", "form:nonce"] }
"#;
        let gateway = Start::before(&upstream).config(config).start().await;
        let text = std::fs::read_to_string(gateway.start.config_file()).unwrap();
        let file = gateway.start.config_file().display().to_string();
        // Its secret is in the data folder, which the file does not name.
        std::fs::write(&file, format!("{text}\n[store]\npath = \"{}\"\n", data(&gateway))).unwrap();
        let head = "POST /pay HTTP/1.1\r\nHost: a\r\nIdempotency-Key: k-1\r\n";
        let ask = format!(
            "{head}Content-Type: application/json\r\nContent-Length: 28\r\n\r\n{{\"b\":1.0, \"sent_at\":7,\"a\":2}}"
        );
        let told = explained(&file, &ask).await;
        assert_eq!((&told["route"], &told["key"]), (&json!("pay"), &json!("k-1")));
        assert_eq!(told["stripped"], json!(["/sent_at"]));
        assert!(told["fingerprint"].as_str().unwrap().starts_with("blake3:"));
        let canonical = {
            use base64::{Engine as _, engine::general_purpose::STANDARD};
            STANDARD.decode(told["canonical_base64"].as_str().unwrap()).unwrap()
        };
        assert!(String::from_utf8_lossy(&canonical).contains("{\"a\":2,\"b\":1}"), "{canonical:?}");
        assert_eq!(told["canonical"].as_str().map(str::as_bytes), Some(canonical.as_slice()));
        assert_eq!((&told["scope"]["route"], told["policy"].is_string()), (&json!("pay"), true));
        gateway.ask(&ask).await;
        let record = &gateway.records().await[0];
        assert_eq!(told["record_id"], record["record_id"], "the id is the record's own");
        let form = |body: &str| format!("{head}Content-Type: application/x-www-form-urlencoded\n\n{body}");
        let one = explained(&file, &form("b=2&a=1&nonce=x")).await;
        let two = explained(&file, &form("a=1&nonce=y&b=2")).await;
        assert_eq!(one["fingerprint"], two["fingerprint"]);
        let none = explained(&file, "POST /pay?ts=1&a=2 HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!((&none["key"], &none["protected"]), (&Value::Null, &json!(false)));
        let output = run_with(&["key", "explain", "--config", &file], &ask).await;
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        for name in
            ["route ", "key ", "scope ", "record_id ", "canonical ", "fingerprint  blake3:", "stripped ", "policy "]
        {
            assert!(shown.lines().any(|line| line.starts_with(name)), "{name} not in {shown}");
        }
        assert!(shown.contains("unkeyed"), "{shown}");
    }

    #[tokio::test]
    async fn what_cannot_be_explained_says_why() {
        let head = "POST /x HTTP/1.1\r\nHost: a\r\n";
        for (code, input, told) in [
            (2, String::new(), "stdin is no HTTP/1.1 request"),
            (2, "hello".to_owned(), "stdin is no HTTP/1.1 request"),
            (2, head.to_owned(), "empty line"),
            (2, format!("{head}Content-Length: 5\r\n\r\nab"), "Content-Length says 5"),
            (1, format!("{head}Idempotency-Key: a b\r\n\r\n"), "invalid-key"),
            (1, format!("{head}Idempotency-Key: a\r\nIdempotency-Key: b\r\n\r\n"), "conflicting-keys"),
            (1, format!("{head}Idempotency-Key: a\r\nCookie: s=1\r\n\r\n"), "no-principal"),
        ] {
            let output = run_with(&["key", "explain"], &input).await;
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(code), "{input:?}: {stderr}");
            assert!(stderr.contains(told) && output.stdout.is_empty(), "{input:?}: {stderr}");
        }
    }

    #[tokio::test]
    async fn the_configuration_is_checked_shown_and_added_up() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let (example, _) = ends(0, &["config", "example"]).await;
        let example = file("example.toml", &example);
        ends(0, &["config", "check", &example]).await;
        let (times, _) = ends(0, &["config", "timeouts", &example]).await;
        assert!(times.contains("retention = 24h ≥ 2 × client_retries = 2 × 20m = 40m"), "{times}");
        let times = json_of(&["config", "timeouts", &example, "--json"]).await;
        assert!(times.is_object() || times.is_array(), "{times}");
        assert_eq!(json_of(&["config", "schema"]).await, json_of(&["config", "schema", "--json"]).await);
        let schema = json_of(&["config", "schema"]).await;
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        assert_eq!(schema["properties"]["listen"]["properties"]["drain"]["default"], "25s");
        let upstream = "[[upstream]]\nname = \"api\"\nurl = \"http://127.0.0.1:9\"\n";
        let wrong = file("wrong.toml", &format!("{upstream}[defaults]\nretenton = \"1h\"\n"));
        let output = run(&["config", "check", &wrong]).await;
        assert_eq!(output.status.code(), Some(2));
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(said.contains(":5:1") && said.contains("did you mean \"retention\""), "{said}");
        let output = run(&["config", "check", &wrong, "--json"]).await;
        assert_eq!(output.status.code(), Some(2));
        serde_json::from_slice::<Value>(&output.stdout).unwrap();
        let short = file("short.toml", &format!("{upstream}[defaults]\nretention = \"30m\"\n"));
        let (shown, _) = ends(1, &["config", "timeouts", &short]).await;
        assert!(shown.contains("retention = 30m < 2 × client_retries"), "{shown}");
        ends(2, &["config", "check", "/nonexistent.toml"]).await;
    }

    #[tokio::test]
    async fn help_has_an_example_for_each_command_and_completions_are_printed() {
        for args in [
            &["proxy"][..],
            &["keys", "list"],
            &["keys", "get"],
            &["keys", "forget"],
            &["keys", "resolve"],
            &["key", "explain"],
            &["config", "check"],
            &["config", "example"],
            &["config", "timeouts"],
            &["config", "schema"],
        ] {
            let (help, _) = ends(0, &[args, &["--help"]].concat()).await;
            assert!(help.contains("Example") && help.contains("onceward "), "{args:?}: {help}");
        }
        for shell in ["bash", "zsh", "fish"] {
            let mut command = onceward();
            command.args(["completions", shell]);
            assert!(output(command).await.stdout.len() > 1000, "{shell}");
        }
    }

    const AUDITED: &str = r#"
[[upstream]]
name = "api"
url = "http://127.0.0.1:9000"
[[route]]
name = "pay"
match = { path = "/pay" }
fingerprint = { strip = ["/sent_at", "/note"] }
[[route]]
name = "hook"
match = { path = "/hook" }
key = { missing = "derive" }
fingerprint = { keep = ["/event"] }
"#;

    /// A line of a capture.
    fn captured(path: &str, key: &str, operation: &str, body: &str) -> String {
        let mut line = json!({ "path": path, "headers": { "Content-Type": "application/json" }, "body": body });
        if !key.is_empty() {
            line["headers"]["Idempotency-Key"] = json!(key);
        }
        if !operation.is_empty() {
            line["operation"] = json!(operation);
        }
        format!("{line}\n")
    }

    #[tokio::test]
    async fn an_audit_names_what_would_collide_and_what_would_not_be_known_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("onceward.toml");
        std::fs::write(&file, AUDITED).unwrap();
        let config = file.to_str().unwrap();
        let audit = ["audit", "--config", config, "-", "--json"];

        let well = [
            captured("/pay", "k-1", "a", r#"{"amount":1,"sent_at":1}"#),
            captured("/pay", "k-1", "a", r#"{"sent_at":2,"amount":1}"#),
            captured("/pay", "k-2", "b", r#"{"amount":1,"sent_at":1}"#),
            captured("/pay", "", "", r#"{"amount":1}"#),
            captured("/pay", "k-2", "c", r#"{"amount":2,"sent_at":1}"#),
            captured("/pay", "two, keys", "", "{}"),
        ];
        let output = run_with(&audit, &well.concat()).await;
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        let pay = &said["routes"][0];
        assert_eq!((&pay["route"], &pay["requests"], &pay["keys"]), (&json!("pay"), &json!(6), &json!(2)), "{said}");
        assert_eq!((&pay["repetitions"], &pay["unprotected"]), (&json!(2), &json!(1)));
        assert_eq!(pay["rejected"]["conflicting-keys"], 1);

        let ill = [
            // One key, another note, and nobody says that it was one operation.
            captured("/pay", "k-1", "", r#"{"amount":1,"note":"a"}"#),
            captured("/pay", "k-1", "", r#"{"amount":1,"note":"b"}"#),
            // A repetition with a nonce that counts.
            captured("/pay", "k-2", "d", r#"{"amount":1,"nonce":1}"#),
            captured("/pay", "k-2", "d", r#"{"amount":1,"nonce":2}"#),
            // Two operations whose key is made of too little.
            captured("/hook", "", "e", r#"{"event":7,"order":1}"#),
            captured("/hook", "", "f", r#"{"event":7,"order":2}"#),
            // One operation whose key is made of too much.
            captured("/hook", "", "g", r#"{"event":8,"order":1}"#),
            captured("/hook", "", "g", r#"{"event":9,"order":1}"#),
        ];
        let output = run_with(&audit, &ill.concat()).await;
        assert_eq!(output.status.code(), Some(1));
        let said: Value = serde_json::from_slice(&output.stdout).unwrap();
        let found = |route: usize, what: &str| {
            let found = &said["routes"][route][what];
            (
                found["pairs"].clone(),
                found["fields"][0]["field"].clone(),
                found["fields"][0]["example"]["lines"].clone(),
            )
        };
        assert_eq!(found(1, "distinct_that_collide"), (json!(1), json!("/note"), json!([1, 2])), "{said}");
        assert_eq!(found(1, "equal_that_do_not"), (json!(1), json!("/nonce"), json!([3, 4])));
        assert_eq!(found(0, "distinct_that_collide"), (json!(1), json!("/order"), json!([5, 6])));
        assert_eq!(found(0, "equal_that_do_not"), (json!(1), json!("/event"), json!([7, 8])));
        let text = run_with(&["audit", "--config", config, "-"], &ill.concat()).await;
        let text = String::from_utf8(text.stdout).unwrap();
        assert!(text.contains("/nonce  1, for example lines 3 and 4"), "{text}");

        let output = run_with(&audit, "{\"path\": \"/pay\"}\nnot json\n").await;
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(1) && stderr.contains("line 2:"), "{stderr}");
        assert_eq!(ends(2, &["audit", "--config", config, "nowhere.ndjson"]).await.0, "");
    }
}
