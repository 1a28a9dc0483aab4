//! The configuration from outside: what a file may say, and what is told of a wrong one.
#![expect(clippy::unwrap_used, reason = "a test's helper may fail the test")]

use std::time::Duration;

use onceward::store::{Durability, postgres::Failover};
use onceward_core::policy::{Outage, Policy, Preset, Step};
use onceward_server::config::{
    Config, ConfigError, Environment, Flags, Journal, NOT_AVAILABLE, Place, report,
    route::{Field, KeySource, Missing, Mode, Principal, ScopePart},
};
use proptest::prelude::*;

const UPSTREAM: &str = "[[upstream]]\nname = \"api\"\nurl = \"http://127.0.0.1:9000\"\n";

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse("onceward.toml", text, &Flags::default(), &Environment::default())
}

/// `text` below an upstream of three lines.
fn with_upstream(text: &str) -> Result<Config, ConfigError> {
    parse(&format!("{UPSTREAM}{text}"))
}

fn complaint<T: std::fmt::Debug>(result: Result<T, ConfigError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_file_with_an_upstream_only_has_the_documented_defaults() {
    let config = parse(UPSTREAM).unwrap();
    assert_eq!(config.listen.address.to_string(), "127.0.0.1:8080");
    assert_eq!(config.admin.address.to_string(), "127.0.0.1:8081");
    assert_eq!(config.listen.drain, Duration::from_secs(25));
    assert_eq!(config.store.path.to_str(), Some("onceward-data"));
    assert_eq!(config.limits.held_answer, 64 << 10);
    let route = &config.default_route;
    assert_eq!((route.name.as_str(), route.upstream.as_deref()), ("default", Some("api")));
    assert_eq!(route.policy(), Policy::default());
    assert_eq!(route.matching.methods, [http::Method::POST, http::Method::PATCH]);
    assert_eq!((route.mode, route.key.missing, route.mismatch_status), (Mode::Enforce, Missing::Optional, 422));
    assert_eq!(route.scope.tenant, ScopePart::Fixed("default".into()));
    assert_eq!(route.scope.principal, Principal::Auto);
    assert_eq!((route.limits.request_body, route.limits.recorded_body), (10 << 20, 1 << 20));
}

#[test]
fn a_route_inherits_key_by_key_what_it_does_not_say() {
    let config = with_upstream(
        r#"
[defaults]
lease = "20s"
key = { missing = "required", min_length = 8 }
record = { preset = "stripe", release = [418] }
fingerprint = { strip = ["/at"] }
on_store_outage = "bypass"
on_unknown = [{ hold = "1h" }, "fail"]

[[route]]
name = "create-payment"
match = { methods = ["POST"], path = "/v1/payments/{id}", host = "API.example.com" }
key = { from = ["header:X-Key", "json:/id"], strict = true }
record = { release = [] }
retention = "48h"
sliding = true
"#,
    )
    .unwrap();
    let route = config.route("create-payment").unwrap();
    assert_eq!(route.lease, Duration::from_secs(20));
    assert_eq!((route.key.missing, route.key.min_length, route.key.strict), (Missing::Required, 8, true));
    assert_eq!(route.key.from, [KeySource::Header("x-key".parse().unwrap()), KeySource::Json("/id".into())]);
    assert_eq!((route.recording.preset, route.recording.release.as_slice()), (Preset::Stripe, &[][..]));
    assert_eq!(route.fingerprint.strip, [Field::Pointer("/at".into())]);
    assert_eq!(route.matching.host.as_deref(), Some("api.example.com"));
    let policy = route.policy();
    assert_eq!(policy.on_store_outage, Outage::Bypass);
    assert_eq!(policy.on_unknown, [Step::HoldFor(Duration::from_secs(3600)), Step::Fail]);
    assert_eq!(policy.sliding_max, Some(Duration::from_secs(7 * 86_400)));
    assert_eq!(config.default_route.key.from.len(), 2);
    assert_eq!(config.default_route.recording.release, [418]);
}

#[test]
fn a_wrong_file_says_what_where_and_how_to_mend_it() {
    let rows: &[(&str, &str)] = &[
        (
            "[[route]]\nname = \"create-payment\"\nretenton = \"24h\"\n",
            r#"onceward.toml:6:1: unknown key "retenton" in [[route]] "create-payment"; did you mean "retention"?"#,
        ),
        (
            "[lisen]\naddress = \"127.0.0.1:1\"\n",
            r#"onceward.toml:4:2: unknown key "lisen" in the file; did you mean "listen"?"#,
        ),
        (
            "[[route]]\nname = \"a\"\nstrip = [\"/at\"]\n",
            r#"onceward.toml:6:1: unknown key "strip" in [[route]] "a"; it belongs in "fingerprint""#,
        ),
        (
            "[[route]]\nname = \"a\"\nkey = { mising = \"required\" }\n",
            r#"onceward.toml:6:9: unknown key "mising" in "key" of [[route]] "a"; did you mean "missing"?"#,
        ),
        ("[admin]\nport = 8081\n", r#"onceward.toml:5:1: unknown key "port" in [admin]; there is address and token"#),
        (
            "[defaults]\nlease = 10\n",
            r#"onceward.toml:5:9: "lease" in [defaults] must be a duration in quotes, such as "30s", not a number"#,
        ),
        ("[defaults]\nlease = \"0s\"\n", r#"onceward.toml:5:9: "lease" in [defaults] is 0s, must be from 100ms to 1h"#),
        (
            "[defaults]\nlease = \"10\"\n",
            r#"onceward.toml:5:9: "lease" in [defaults]: "10" lacks a unit: one of "ms", "s", "m", "h", "d""#,
        ),
        (
            "[defaults.record]\npreset = \"strip\"\n",
            r#"onceward.toml:5:10: "preset" in "record" of [defaults] must be "safe", "rollback", "success" or "stripe", not "strip"; did you mean "stripe"?"#,
        ),
        (
            "[defaults]\nmismatch_status = 404\n",
            r#"onceward.toml:5:19: "mismatch_status" in [defaults] must be 422, 409 or 400"#,
        ),
        (
            "[[route]]\nname = \"Pay\"\n",
            r#"onceward.toml:5:8: "name" in [[route]] "Pay": "Pay" is not a name: 1 to 64 of a-z, 0-9 and "-""#,
        ),
        ("[[route]]\nmatch = { path = \"/a\" }\n", r#"onceward.toml:4:1: [[route]] lacks "name""#),
        (
            "[[route]]\nname = \"a\"\n[[route]]\nname = \"a\"\n",
            r#"onceward.toml:7:1: two routes are named "a"; the first is at onceward.toml:5:1"#,
        ),
        (
            "[[route]]\nname = \"a\"\nupstream = \"other\"\n",
            r#"onceward.toml:6:1: no [[upstream]] is named "other"; there is api"#,
        ),
        (
            "[[route]]\nname = \"a\"\nmatch = { path = \"v1\" }\n",
            r#"onceward.toml:6:18: "path" in "match" of [[route]] "a": "v1" must start with "/""#,
        ),
        (
            "[route]\nname = \"a\"\n",
            r#"onceward.toml:4:1: "route" must be sections: write [[route]], with two brackets, not a table"#,
        ),
        (
            "[admin]\naddress = \"0.0.0.0:8081\"\n",
            r#"onceward.toml:5:1: the admin listener at 0.0.0.0:8081 is reachable from other machines and has no token: set "token" in [admin], for example "env:ONCEWARD_ADMIN_TOKEN", or keep it on 127.0.0.1"#,
        ),
        (
            "[admin]\naddress = \"127.0.0.1:8080\"\n",
            "onceward.toml:5:1: the proxy and the admin listener are both at 127.0.0.1:8080: give one another port",
        ),
        (
            "[listen]\ntrusted = [\"10.0.0.0/33\"]\n",
            r#"onceward.toml:5:12: "trusted" in [listen]: "10.0.0.0/33" is not a network: write "10.0.0.0/8", or one address"#,
        ),
        (
            "[defaults.fingerprint]\nstrip = [\"/a\"]\nkeep = [\"/b\"]\n",
            r#"onceward.toml:6:1: [defaults]: "strip" and "keep" of "fingerprint" exclude each other: with "keep" nothing else counts anyway; set one to []"#,
        ),
        (
            "[defaults]\non_unknown = [\"hold\", \"fail\"]\n",
            r#"onceward.toml:5:23: "on_unknown" of [defaults]: nothing comes after "hold", which ends the list"#,
        ),
        (
            "[defaults.record]\nrecord = [409]\nrelease = [409]\n",
            r#"onceward.toml:6:1: [defaults]: 409 is both in "record" and in "release" of "record""#,
        ),
        (
            "[defaults]\nname = \"x\"\n",
            r#"onceward.toml:5:1: "name" in [defaults] has no meaning: it belongs in a [[route]]"#,
        ),
        (
            "[[quota.tenant]]\nname = \"acme\"\n[[quota.tenant]]\nname = \"acme\"\nbytes = \"1MiB\"\n",
            r#"onceward.toml:7:1: two quotas are for the tenant "acme"; the first is at onceward.toml:5:1"#,
        ),
        ("[[quota.tenant]]\nbytes = \"1MiB\"\n", r#"onceward.toml:4:1: [[quota.tenant]] lacks "name""#),
        ("[quota]\nburst = 10\n", r#"onceward.toml:5:1: "burst" needs "claims_per_second" beside it, or in [quota]"#),
        (
            "[quota]\nclaims_per_second = 0\n",
            r#"onceward.toml:5:21: "claims_per_second" in [quota] must be from 1 to 10000000"#,
        ),
        (
            "[defaults]\non_cache_loss = \"quarantine\"\n",
            r#"onceward.toml:5:1: "on_cache_loss" of [defaults]: where these records are, nothing is lost: "quarantine" is of durability = "cache"; leave it out"#,
        ),
        (
            "[defaults]\non_unknown = [\"probe\"]\n",
            r#"onceward.toml:5:15: "on_unknown" of [defaults] says "probe", and "probe" does not say who is asked: add probe = { url = "http://127.0.0.1:9000/by-record/{record}", executed = [200], not_executed = [404] }"#,
        ),
        (
            "[defaults]\nprobe = { url = \"http://h/{record}\" }\n",
            r#"onceward.toml:5:1: [defaults]: "probe" has no status in "executed" and none in "not_executed", so no answer says anything; write executed = [200], not_executed = [404]"#,
        ),
        (
            "[defaults]\nprobe = { url = \"http://h/{record}\", executed = [200, 404], not_executed = [404] }\n",
            r#"onceward.toml:5:61: [defaults]: 404 is both in "executed" and in "not_executed" of "probe""#,
        ),
        (
            "[defaults]\nprobe = { url = \"http://h/{record}\", executed = [200], not_executed = [404, 503] }\n",
            r#"onceward.toml:5:77: 503 in "not_executed" of "probe" of [defaults] is an error of a server, which proves nothing"#,
        ),
        (
            "[defaults]\nprobe = { url = \"http://h/{id}\", executed = [200] }\n",
            r#"onceward.toml:5:17: "url" in "probe" of [defaults]: may hold the placeholders "{record}" and "{key}" and no other brace"#,
        ),
        (
            "[defaults]\nprobe = { url = \"http://h/status\", executed = [200] }\n",
            r#"onceward.toml:5:17: "url" in "probe" of [defaults]: asks the same of every request: put "{record}" or "{key}" into it"#,
        ),
        (
            "[defaults]\non_unknown = [\"probe\", { hold = \"1h\" }, \"probe\"]\nprobe = { url = \"http://h/{record}\", executed = [200] }\n",
            r#"onceward.toml:5:41: "on_unknown" of [defaults]: "probe" stands twice"#,
        ),
        (
            "[defaults]\non_unknown = [\"effect\"]\n",
            r#"onceward.toml:5:15: "on_unknown" of [defaults] says "effect", and nothing says in which database it is: add effect = { url = "env:DATABASE_URL" }"#,
        ),
        (
            "[defaults]\non_unknown = [\"effect\", \"effect\"]\neffect = { url = \"postgresql://h/shop\" }\n",
            r#"onceward.toml:5:25: "on_unknown" of [defaults]: "effect" stands twice"#,
        ),
        (
            "[defaults]\non_unknown = [\"effect\"]\neffect = { url = \"env:GONE\" }\n",
            r#"onceward.toml:6:12: "url" of "effect" of [defaults]: the environment variable "GONE" is not set, or is not UTF-8"#,
        ),
        (
            "[defaults]\non_unknown = [\"effect\"]\neffect = { url = \"postgresql://me:secret@h:port/\" }\n",
            r#"onceward.toml:6:12: "url" in "effect" of [defaults]: the address of the database cannot be read: invalid connection string: invalid value for option `port`; write postgresql://user@host:5432/database"#,
        ),
        (
            "[defaults]\nprobe = { url = \"http://h/{key}\", executed = [200], headers = [{ name = \"X-Key\", value = \"env:GONE\" }] }\n",
            r#"onceward.toml:5:82: the value of x-key in "probe" of [defaults]: the environment variable "GONE" is not set, or is not UTF-8"#,
        ),
        ("[defaults]\nauth = { cache = \"5s\" }\n", r#"onceward.toml:5:1: "auth" of [defaults] lacks "url""#),
        (
            "[defaults]\nauth = { url = \"http://u:secret@h/\" }\n",
            r#"onceward.toml:5:16: "url" in "auth" of [defaults]: must not hold a user or a password"#,
        ),
        (
            "[defaults]\nauth = { url = \"h/check\" }\n",
            r#"onceward.toml:5:16: "url" in "auth" of [defaults]: "h/check" is not a URL: write "http://127.0.0.1:9000""#,
        ),
        (
            "[defaults]\nscope = { principal = \"none\" }\nauth = { url = \"http://h/\", principal_header = \"X-User\" }\n",
            r#"onceward.toml:6:29: [defaults]: both "principal_header" of "auth" and "principal" of "scope" say who the caller is; leave one out"#,
        ),
        (
            "[defaults]\nscope = { principal = \"mtls\" }\n",
            r#"onceward.toml:5:11: [defaults]: "mtls" is the subject of a client's certificate, and no client is asked for one: set "client_ca" and "client_auth" of "tls" in [listen], else every keyed request is 400 no-principal"#,
        ),
        ("key = \n", "onceward.toml:4:7: not TOML: string values must be quoted, expected literal string"),
        ("[admin]\ntoken = 1\ntoken = 2\n", "onceward.toml:6:1: not TOML: duplicate key"),
    ];
    for (text, want) in rows {
        assert_eq!(complaint(with_upstream(text)), *want, "{text}");
    }
}

#[test]
fn times_that_do_not_fit_are_refused_with_their_arithmetic() {
    let rows: &[(&str, &str)] = &[
        (
            "[[route]]\nname = \"a\"\nretention = \"30m\"\n",
            "onceward.toml:6:1: [[route]] \"a\": retention = 30m is less than 2 × client_retries = 2 × 20m = 40m: a client that still tries would run a second time; raise retention to 40m or more, or lower client_retries",
        ),
        (
            "[defaults]\nretention = \"5m\"\nclient_retries = \"1m\"\n[[route]]\nname = \"a\"\n",
            "onceward.toml:5:1: [defaults]: retention = 5m is less than execution_max + lease = 10m + 10s = 610s: a key could be forgotten while its request runs; raise retention to 610s or more, or lower execution_max or lease",
        ),
        (
            "[[route]]\nname = \"a\"\ntimeout = \"10s\"\n",
            "onceward.toml:6:1: [[route]] \"a\": timeout = 10s is less than in_flight.wait = 20s: a repetition would wait longer than the first one may take; raise timeout to 20s or more, or lower in_flight.wait",
        ),
        (
            "[[route]]\nname = \"a\"\nin_flight = { wait = \"1m\" }\n",
            "onceward.toml:6:15: [[route]] \"a\": timeout = 30s is less than in_flight.wait = 1m: a repetition would wait longer than the first one may take; raise timeout to 1m or more, or lower in_flight.wait",
        ),
        (
            "[[route]]\nname = \"a\"\nexecution_max = \"25s\"\n",
            "onceward.toml:6:1: [[route]] \"a\": execution_max = 25s is less than timeout = 30s: the execution would end before its client is answered; raise execution_max to 30s or more, or lower timeout",
        ),
    ];
    for (text, want) in rows {
        assert_eq!(complaint(with_upstream(text)), *want, "{text}");
    }
    let longer = "[defaults]\nretention_body = \"25h\"\n";
    assert_eq!(
        complaint(with_upstream(longer)),
        "onceward.toml:5:1: [defaults]: retention = 24h is less than retention_body = 25h: an answer's body would outlive its key; raise retention to 25h or more, or lower retention_body"
    );
    let even = "[[route]]\nname = \"a\"\nretention = \"40m\"\ntimeout = \"20s\"\nexecution_max = \"20s\"\n";
    with_upstream(even).unwrap();
}

#[test]
fn several_problems_are_told_at_once_in_the_order_of_the_file() {
    let text = "[listen]\nadress = \"x\"\n[defaults]\nlease = 1\n[[route]]\nname = \"a\"\nmod = \"off\"\n";
    let told = complaint(with_upstream(text));
    let lines: Vec<&str> = told.lines().map(|line| line.split(": ").next().unwrap()).collect();
    assert_eq!(lines, ["onceward.toml:5:1", "onceward.toml:7:9", "onceward.toml:10:1"], "{told}");
    // What routes inherit is told once, of its owner.
    let text =
        "[defaults.fingerprint]\nstrip = [\"/a\"]\nkeep = [\"/b\"]\n[[route]]\nname = \"a\"\n[[route]]\nname = \"b\"\n";
    let told = complaint(with_upstream(text));
    assert!(told.lines().count() == 1 && told.contains("[defaults]"), "{told}");
    let many: String = (0..200).map(|n| format!("unknown_{n} = 1\n")).collect();
    let told = complaint(parse(&format!("{many}{UPSTREAM}")));
    assert_eq!(told.lines().count(), 51);
    assert!(told.ends_with("onceward.toml: 150 more problems; mend these first"), "{told}");
}

/// A file of bytes, and its name inside a folder of its own.
fn file(bytes: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("onceward.toml");
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

#[test]
fn a_file_that_is_no_configuration_says_so() {
    let load = |path: &std::path::Path| complaint(Config::load(Some(path), &Flags::default(), &Environment::default()));
    let (folder, path) = file(b"# caf\xe9\n");
    let name = path.display();
    assert_eq!(load(&path), format!("{name}:1:6: is not UTF-8 from here on; save the file in that encoding"));
    std::fs::write(&path, b"").unwrap();
    let none =
        r#"no upstream: add [[upstream]] with name = "api" and url = "http://127.0.0.1:9000", or give --upstream URL"#;
    assert_eq!(load(&path), format!("{name}: {none}"));
    std::fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
    assert_eq!(load(&path), format!("{name}: is larger than 1MiB; is it the right file?"));
    let told = load(folder.path());
    assert_eq!(told, format!("{}: is a directory; name the file in it", folder.path().display()));
    let gone = folder.path().join("gone.toml");
    let told = load(&gone);
    assert!(told.starts_with(&format!("{}: cannot be read: ", gone.display())), "{told}");
    assert!(told.ends_with("; write a first one with `onceward config example > onceward.toml`"), "{told}");
    assert_eq!(complaint(Config::from_flags(&Flags::default())), format!("command line: {none}"));
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let environment = Environment::from_pairs([
        ("ONCEWARD_LISTEN__ADDRESS", "127.0.0.1:1"),
        ("ONCEWARD_ADMIN__ADDRESS", "127.0.0.1:2"),
        ("ONCEWARD_LISTEN__TRUSTED", r#"["10.0.0.0/8"]"#),
        ("ONCEWARD_DEFAULTS__KEY__MISSING", "required"),
        ("ONCEWARD_DEFAULTS__SCOPE__PRINCIPAL", r#"["header:X-User"]"#),
        ("ONCEWARD_LIMITS__WAITERS", "7"),
        ("ONCEWARD_UPSTREAM__0__MAX_IN_FLIGHT", "3"),
        ("ONCEWARD_ROUTE__0__NAME", "added"),
        ("ONCEWARD_DEFAULT_UPSTREAM", "api"),
        ("ONCEWARD_ADMIN_TOKEN", "not an override"),
        ("ONCEWARD_ADMIN__TOKEN", "env:ONCEWARD_SECRET"),
        ("ONCEWARD_SECRET", "0123456789abcdef"),
    ]);
    let flags = Flags {
        upstream: Some("http://127.0.0.1:7000".into()),
        listen: Some("127.0.0.1:0".into()),
        data: Some("elsewhere".into()),
        ..Flags::default()
    };
    let text = format!("{UPSTREAM}[listen]\naddress = \"127.0.0.1:9\"\n");
    let config = Config::parse("onceward.toml", &text, &flags, &environment).unwrap();
    assert_eq!(config.listen.address.to_string(), "127.0.0.1:0");
    assert_eq!(config.admin.address.to_string(), "127.0.0.1:2");
    assert_eq!(config.listen.trusted[0].to_string(), "10.0.0.0/8");
    assert_eq!(config.admin.token.as_ref().unwrap().expose(), "0123456789abcdef");
    assert_eq!(config.default_route.key.missing, Missing::Required);
    assert!(matches!(config.default_route.scope.principal, Principal::Parts(_)));
    assert_eq!(config.limits.waiters, 7);
    assert_eq!((config.upstreams.len(), config.upstreams[0].max_in_flight), (1, 3));
    assert_eq!(config.upstreams[0].url, "http://127.0.0.1:7000/");
    assert_eq!(config.routes[0].name, "added");
    assert_eq!(config.store.path.to_str(), Some("elsewhere"));
    assert!(!format!("{config:?}").contains("0123456789abcdef"));
}

#[test]
fn a_wrong_override_names_its_variable_or_flag() {
    let rows: &[(&str, &str, &str)] = &[
        (
            "ONCEWARD_LISTEN__ADRESS",
            "x",
            r#"ONCEWARD_LISTEN__ADRESS: unknown key "adress" in [listen]; did you mean "address"?"#,
        ),
        (
            "ONCEWARD_LIMITS__WAITERS",
            "many",
            r#"ONCEWARD_LIMITS__WAITERS: "waiters" in [limits] must be a whole number from 0 to 1000000, not a text"#,
        ),
        (
            "ONCEWARD_UPSTREAM__2__URL",
            "http://h",
            "ONCEWARD_UPSTREAM__2__URL: names no [[upstream]]: write its position in the file and a key, as in ONCEWARD_UPSTREAM__0__NAME; 1 is the next free one",
        ),
        (
            "ONCEWARD_LISTEN__ADDRESS__PORT",
            "1",
            r#"ONCEWARD_LISTEN__ADDRESS__PORT: goes too deep: "address" holds no other keys"#,
        ),
        (
            "ONCEWARD_STORE__REDIS__STRATEGY",
            "scripts",
            r#"ONCEWARD_STORE__REDIS__STRATEGY: "strategy" in "redis" of [store] must be "script" or "watch", not "scripts"; did you mean "script"?"#,
        ),
        (
            "ONCEWARD_ADMIN__TOKEN",
            "env:GONE",
            r#"ONCEWARD_ADMIN__TOKEN: "token" in [admin]: the environment variable "GONE" is not set, or is not UTF-8"#,
        ),
    ];
    for (name, value, want) in rows {
        let environment = Environment::from_pairs([(*name, *value)]);
        assert_eq!(complaint(Config::parse("f", UPSTREAM, &Flags::default(), &environment)), *want);
    }
    let deep = format!("ONCEWARD_{}", "A__".repeat(30_000));
    let environment = Environment::from_pairs([(deep, "x")]);
    assert!(complaint(Config::parse("f", UPSTREAM, &Flags::default(), &environment)).contains("unknown key \"a\""));
    let two = format!("{UPSTREAM}{}", UPSTREAM.replace("api", "other"));
    let flags = Flags { upstream: Some("http://h".into()), ..Flags::default() };
    assert_eq!(
        complaint(Config::parse("f", &two, &flags, &Environment::default())),
        "--upstream: the file has 2 upstreams: give the URL there, for it is not clear which is meant"
    );
    let flags = Flags { listen: Some("8080".into()), upstream: Some("http://h".into()), ..Flags::default() };
    assert_eq!(
        complaint(Config::from_flags(&flags)),
        r#"--listen: "address" in [listen]: "8080" is not an address and a port: write "127.0.0.1:8080", or "[::1]:8080""#
    );
}

#[test]
fn with_several_upstreams_a_route_says_which_and_the_rest_has_its_own() {
    let two = format!("{UPSTREAM}{}", UPSTREAM.replace("api", "other"));
    let told = complaint(parse(&format!("{two}[[route]]\nname = \"a\"\n")));
    assert_eq!(told, r#"onceward.toml:7:1: [[route]] "a" must say "upstream", for there are several: api, other"#);
    assert_eq!(parse(&two).unwrap().default_route.upstream, None);
    let config =
        parse(&format!("default_upstream = \"other\"\n{two}[defaults]\nupstream = \"api\"\n[[route]]\nname = \"a\"\n"))
            .unwrap();
    assert_eq!(config.default_route.upstream.as_deref(), Some("other"));
    assert_eq!(config.routes[0].upstream.as_deref(), Some("api"));
    let told = complaint(parse(&format!("{UPSTREAM}{UPSTREAM}")));
    assert_eq!(told, r#"onceward.toml:5:1: two upstreams are named "api"; the first is at onceward.toml:2:1"#);
}

/// Goal: nobody's records are in a store that may lose them, or that others use, without his having written so.
/// Method: what is left out is told, and all of it together is taken.
#[test]
fn of_a_tiered_store_each_route_says_where_its_records_are() {
    const SECRET: &str = "[identity]\nsecret = \"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\"\n";
    const STORE: &str =
        "[store]\nkind = \"tiered\"\nredis = { url = \"redis://h\" }\npostgres = { url = \"postgresql://d\" }\n";
    let env = "scope = { env = \"fixed:live\" }\n";
    let defaults = |more: &str| format!("{SECRET}{STORE}[defaults]\n{more}\n{env}");
    let strict = defaults("durability = \"strict\"");
    let journaled = |said: &str, more: &str| {
        defaults(&format!("durability = \"journaled\"\n{more}")).replace(STORE, &format!("{STORE}journal = {said}\n"))
    };
    for (text, want) in [
        (defaults(""), "write durability = \"strict\" for PostgreSQL"),
        (
            defaults("durability = \"journaled\""),
            "\"journaled\" is of kind = \"tiered\" in [store], with [store.journal]",
        ),
        (format!("{SECRET}[defaults]\ndurability = \"journaled\"\n{env}"), "\"journaled\" is of kind = \"tiered\""),
        (journaled("{}", ""), "[store.journal] needs \"failover\""),
        (journaled("{ failover = \"asynchronous\" }", ""), "\"asynchronous\" needs \"standbys\""),
        (journaled("{ failover = \"none\", standbys = [\"b\"] }", ""), "are those of failover = \"asynchronous\""),
        (journaled("{ failover = \"asynchronous\", standbys = [\"b\", \"b\"] }", ""), "\"b\" is named twice"),
        (journaled("{ failover = \"none\" }", "on_cache_loss = \"quarantine\""), "is of durability = \"cache\""),
        (strict.replace(env, ""), "environments may share a Redis"),
        (strict.replace(SECRET, ""), "kind = \"tiered\" needs \"secret\" in [identity]"),
        (strict.replace("redis = { url = \"redis://h\" }\n", ""), "needs \"url\" in [store.redis]"),
        (strict.replace("postgres = { url = \"postgresql://d\" }\n", ""), "[store.postgres] needs \"url\""),
        (strict.replace("redis://h\"", "redis://h\", strategy = \"watch\""), "is kept by scripts"),
        (defaults("durability = \"strict\"\non_cache_loss = \"quarantine\""), "is of durability = \"cache\""),
        (defaults("durability = \"strict\"\non_store_outage = \"fallback\""), "\"fallback\" needs [store.fallback]"),
        (strict.replace(STORE, &format!("{STORE}fallback = {{ kind = \"postgres\" }}\n")), "is for kind = \"redis\""),
    ] {
        let told = complaint(with_upstream(&text));
        assert!(told.contains(want), "{text}\n{told}");
    }
    let fast = "[[route]]\nname = \"fast\"\nmatch = { path = \"/fast\" }\ndurability = \"cache\"\non_cache_loss = \"quarantine\"\n";
    let taken = with_upstream(&format!("{strict}{fast}")).unwrap();
    assert!(taken.store.is_tiered());
    let durabilities = |config: &Config| (config.default_route.durability, config.routes[0].durability);
    assert_eq!(durabilities(&taken), (Durability::Strict, Durability::Cache));
    let outage = |more: &str| {
        let taken = with_upstream(&journaled("{ failover = \"none\" }", more)).unwrap();
        taken.default_route.on_store_outage
    };
    assert_eq!(
        [outage(""), outage("on_store_outage = \"fallback\""), outage("on_store_outage = \"deny\"")],
        [Outage::Fallback, Outage::Fallback, Outage::Deny]
    );
    let standbys =
        "{ failover = \"asynchronous\", standbys = [\"b\", \"c\"], member_timeout = \"5s\", spool = \"2GiB\" }";
    let taken = with_upstream(&format!("{}{fast}", journaled(standbys, ""))).unwrap();
    assert_eq!(durabilities(&taken), (Durability::Journaled, Durability::Cache));
    let journal = Journal {
        failover: Failover::Asynchronous { standbys: vec!["b".into(), "c".into()] },
        member_timeout: Duration::from_secs(5),
        spool: 2 << 30,
    };
    assert_eq!(taken.store.journal, Some(journal));
}

/// Method: what is left out is told, and all of it together is taken.
#[test]
fn records_in_redis_want_durability_and_environment_written_for_every_route() {
    const SECRET: &str = "[identity]\nsecret = \"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\"\n";
    const STORE: &str = "[store]\nkind = \"redis\"\n[store.redis]\nurl = \"redis://h\"\n";
    let defaults = |more: &str| format!("{SECRET}{STORE}[defaults]\n{more}\n");
    let env = "scope = { env = \"fixed:live\" }\n";
    let fallback = |more: &str| {
        let section = format!("[store.fallback]\nkind = \"postgres\"\nurl = \"postgresql://d\"\n{more}\n");
        let route = format!("[defaults]\ndurability = \"cache\"\non_store_outage = \"fallback\"\n{env}");
        format!("{SECRET}{STORE}{section}{route}")
    };
    let rows = [
        (
            format!("[store]\nkind = \"redis\"\n[defaults]\ndurability = \"cache\"\n{env}"),
            "needs \"secret\" in [identity]",
        ),
        (
            format!("[store]\nkind = \"redis\"\n[defaults]\ndurability = \"cache\"\n{env}"),
            "needs \"url\" in [store.redis]",
        ),
        (defaults(env), "onceward.toml:7:1: [defaults]: the records are in Redis, which may lose what it acknowledged"),
        (defaults(&format!("durability = \"strict\"\n{env}")), "keeps nothing as \"strict\" does"),
        (defaults("durability = \"cache\""), "onceward.toml:7:1: [defaults]: environments may share a Redis"),
        (
            defaults(&format!("mode = \"off\"\n{env}[[route]]\nname = \"a\"\nmode = \"enforce\"")),
            "[[route]] \"a\": the records are in Redis",
        ),
        ("[defaults]\ndurability = \"cache\"\n".to_owned(), "\"cache\" is of kind = \"redis\" or \"tiered\""),
        (defaults("").replace("redis://h", "redis://u:hunter2@h:p"), "names no server at \"h:p\""),
        (defaults("").replace("redis://h\"", "redis://h\"\nca = \"ca.pem\""), "speaks in clear: write rediss://"),
        (defaults("").replace("redis://h\"", "rediss://h\"\nkey = \"key.pem\""), "lacks \"cert\""),
        (
            defaults("").replace("redis://h\"", "redis://h\"\nstrategy = \"watch\"\ndetect_evictions = \"inline\""),
            "leave out strategy = \"watch\"",
        ),
        (
            defaults("").replace("redis://h\"", "redis://h\"\nwait = { replicas = 1, timeout = \"500ms\" }"),
            "must be below \"deadline\" in [store], 500ms",
        ),
        (defaults("").replace("redis://h\"", "redis://h\"\nwait = { timeout = \"50ms\" }"), "lacks \"replicas\""),
        (fallback(""), "[store.fallback] needs duplicates = \"accepted\""),
        (fallback("duplicates = \"accepted\"").replace("kind = \"postgres\"\n", ""), "needs kind = \"postgres\""),
        (fallback("duplicates = \"lost\""), "must be \"accepted\", not \"lost\""),
        (
            fallback("duplicates = \"accepted\"").replace("url = \"postgresql://d\"", ""),
            "[store.fallback] needs \"url\"",
        ),
        (
            fallback("duplicates = \"accepted\"").replace("kind = \"redis\"", "kind = \"postgres\""),
            "[store.fallback] is for kind = \"redis\" in [store]",
        ),
        (
            fallback("duplicates = \"accepted\"").replace("durability = \"cache\"", "durability = \"strict\""),
            "keeps nothing as \"strict\" does",
        ),
        (
            defaults(&format!("durability = \"cache\"\non_store_outage = \"fallback\"\n{env}")),
            "\"fallback\" needs [store.fallback]",
        ),
        ("[defaults]\non_store_outage = \"fallback\"\n".to_owned(), "\"fallback\" needs [store.fallback]"),
    ];
    for (text, want) in rows {
        let told = complaint(with_upstream(&text));
        assert!(told.contains(want) && !told.contains("hunter2"), "{text}\n{told}");
    }
    let taken = with_upstream(&defaults(&format!("durability = \"cache\"\n{env}"))).unwrap();
    assert!(taken.store.redis.is_some_and(|redis| redis.url.expose() == "redis://h"));
    let taken = with_upstream(&fallback("duplicates = \"accepted\"")).unwrap();
    assert!(taken.store.fallback.is_some_and(|said| said.database.url.expose() == "postgresql://d"));
    assert_eq!(taken.default_route.on_store_outage, Outage::Fallback);
    // What is not kept is nobody's to lose; and the kind alone switches.
    assert!(with_upstream(&defaults("mode = \"off\"")).is_ok());
    assert!(with_upstream(&STORE.replace("\"redis\"", "\"embedded\"")).unwrap().store.redis.is_none());
}

#[test]
fn what_is_not_available_is_refused_by_name_and_place() {
    for (key, what) in NOT_AVAILABLE {
        let (path, value) = key.split_once(" = ").unwrap_or((key, "{}"));
        // Each in a route and in [defaults]; others in their section.
        let texts: Vec<String> = match path.split('.').collect::<Vec<_>>().as_slice() {
            ["route", rest @ ..] => {
                let line = format!("{} = {value}\n", rest.join("."));
                vec![format!("{UPSTREAM}[[route]]\nname = \"a\"\n{line}"), format!("{UPSTREAM}[defaults]\n{line}")]
            }
            ["upstream", name] => vec![format!("{UPSTREAM}{name} = {value}\n")],
            [section] => vec![format!("{UPSTREAM}[{section}]\n")],
            [section, name @ ..] => vec![format!("{UPSTREAM}[{section}]\n{} = {value}\n", name.join("."))],
            [] => vec![],
        };
        for text in texts {
            let Err(ConfigError::Invalid { problems }) = parse(&text) else { panic!("{key} is taken: {text}") };
            let [problem] = problems.as_slice() else { panic!("{key}: {problems:?}") };
            assert!(matches!(problem.place, Place::Line { .. }), "{key}: {problem}");
            let want = format!("is not available in this version ({what}); leave it out");
            assert!(problem.message.ends_with(&want), "{key}: {problem}");
        }
    }
}

#[test]
fn a_window_is_a_time_in_utc_and_of_no_use_to_redis() {
    let told = complaint(with_upstream("[maintenance]\nwindow = \"02:00-05:00 CET\"\n"));
    assert!(told.contains("onceward.toml:5:10:") && told.contains("the only zone that is taken"), "{told}");
    let config = with_upstream("[maintenance]\nwindow = \"23:30-00:30 UTC\"\n").unwrap();
    assert!(config.maintenance.window.is_some_and(|window| window.contains(0) && !window.contains(3600)));
    let redis = "[identity]\nsecret = \"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\"\n[store]\nkind = \"redis\"\n\
                 [store.redis]\nurl = \"redis://localhost\"\n[defaults]\ndurability = \"cache\"\nscope.env = \"fixed:x\"\n";
    let text = format!("{UPSTREAM}{redis}[maintenance]\nwindow = \"02:00-05:00 UTC\"\n");
    let report = report::check_text("onceward.toml", &text, &Environment::default());
    assert!(
        report.errors.is_empty() && report.text().contains("Redis removes what has ended by itself"),
        "{}",
        report.text()
    );
}

/// Every key of the tables and the text of PROTOCOL section 5.
const PROTOCOL_KEYS: &str = "
    default_upstream identity.secret identity.previous
    listen.address listen.tls listen.trusted listen.drain admin.address admin.token
    store.kind store.path store.deadline store.breaker store.reserve store.write_version
    store.redis.url store.redis.username store.redis.password store.redis.strategy store.redis.sentinel_username
    store.redis.detect_evictions store.redis.wait
    store.redis.sentinel_password store.redis.ca store.redis.cert store.redis.key
    store.postgres.url store.fallback.kind store.fallback.duplicates
    store.journal.failover store.journal.standbys store.journal.member_timeout store.journal.spool
    upstream.name upstream.url upstream.ca upstream.client_cert upstream.http2
    upstream.max_in_flight upstream.connect_timeout
    route.name route.match.methods route.match.path route.match.host route.upstream route.mode
    route.key.from route.key.missing route.key.strict route.key.min_length route.key.derived_retention
    route.key.docs route.scope.tenant route.scope.env route.scope.principal
    route.auth.url route.auth.headers route.auth.cache route.auth.timeout route.auth.principal_header
    route.fingerprint.hash route.fingerprint.body route.fingerprint.strip route.fingerprint.keep
    route.fingerprint.require route.fingerprint.unordered route.fingerprint.headers
    route.fingerprint.sort_query route.fingerprint.decode route.fingerprint.fields
    route.retention route.retention_body route.sliding route.retention_max
    route.unknown_max route.client_retries route.lease route.two_phase_dispatch
    route.timeout route.execution_max route.idle_timeout
    route.in_flight.wait route.in_flight.waiters_per_key
    route.record.preset route.record.record route.record.release route.record.unknown
    route.record.release_when route.record.set_cookie route.replay.body route.replay.header
    route.mismatch_status route.on_unknown route.probe.url route.probe.executed route.probe.not_executed
    route.probe.quiesce route.probe.timeout route.probe.replay route.probe.headers
    route.effect.url route.effect.password route.effect.tls route.effect.ca route.effect.name route.effect.timeout
    route.retry_max route.on_store_outage route.durability route.on_cache_loss
    route.limits.request_body route.limits.recorded_body route.forward_key
    limits.connections limits.headers limits.waiters limits.held_answer limits.canonical_body limits.spool
    limits.unrecorded limits.replay_cache limits.decode_ratio quota.claims_per_second quota.live_records quota.bytes maintenance.window
    regions.self encryption.keys
";

#[test]
fn every_key_of_the_protocol_is_known() {
    for path in PROTOCOL_KEYS.split_whitespace() {
        // A value of a kind that no key has, so that only the name can be right.
        let text = match path.split_once('.') {
            None => format!("{path} = 1979-05-27\n"),
            Some((table @ ("route" | "upstream"), key)) => format!("[[{table}]]\n{key} = 1979-05-27\n"),
            Some((section, key)) => format!("[{section}]\n{key} = 1979-05-27\n"),
        };
        let told = complaint(parse(&text));
        assert!(!told.contains("unknown key") && !told.contains("not TOML"), "{path}: {told}");
    }
}

#[test]
fn the_example_passes_and_says_the_defaults() {
    let report = report::check_text("onceward.toml", report::EXAMPLE, &Environment::default());
    assert_eq!(report.text(), "onceward.toml: good, 2 routes\n");
    let example = parse(report::EXAMPLE).unwrap();
    let bare = parse(UPSTREAM).unwrap();
    assert_eq!(Config { routes: Vec::new(), ..example }, bare);
    // What is commented out is right as well.
    let optional: String = report::EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if rest.contains(" = \"") || rest.contains(" = 1") => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    assert_ne!(optional, report::EXAMPLE);
    assert_eq!(report::check_text("f", &optional, &Environment::default()).errors, []);
}

#[test]
fn the_example_holds_every_key_that_is_available() {
    let missing: Vec<&str> = NOT_AVAILABLE.iter().map(|(key, _)| *key).filter(|key| !key.contains(" = ")).collect();
    for path in PROTOCOL_KEYS.split_whitespace() {
        let key = path.rsplit('.').next().unwrap();
        let available = !missing.iter().any(|missing| path == *missing || path.starts_with(&format!("{missing}.")));
        assert!(!available || report::EXAMPLE.contains(&format!("{key} = ")), "{path}");
    }
}

#[test]
fn a_check_reports_as_text_and_as_json() {
    let (_folder, path) = file(format!("{UPSTREAM}[admin]\ntoken = \"env:GONE\"\nx = 1\n").as_bytes());
    let report = report::check(&path, &Environment::default()).unwrap();
    let name = path.display().to_string();
    assert_eq!(
        report.text(),
        format!(
            "{name}:6:1: unknown key \"x\" in [admin]; there is address and token\n\
             {name}:5:1: warning: \"token\" in [admin]: the environment variable \"GONE\" is not set, or is not UTF-8\n\
             {name}: 1 problem\n"
        )
    );
    let json = report.json();
    assert_eq!(json["ok"], false);
    assert_eq!(json["errors"][0]["line"], 6);
    assert_eq!(json["warnings"][0]["column"], 1);
}

#[test]
fn timeouts_show_each_inequality_even_where_one_does_not_hold() {
    let (_folder, path) = file(format!("{UPSTREAM}[[route]]\nname = \"pay\"\nretention = \"30m\"\n").as_bytes());
    let table = report::timeouts(&path, &Environment::default()).unwrap();
    assert!(!table.ok());
    let text = table.text();
    assert!(text.contains("DOES NOT HOLD  retention = 30m < 2 × client_retries = 2 × 20m = 40m"), "{text}");
    assert!(text.contains("holds          execution_max = 10m ≥ timeout = 30s"), "{text}");
    assert_eq!(table.json()["routes"][0]["times_ms"]["retention"], 1_800_000);
    std::fs::write(&path, "nonsense").unwrap();
    assert!(report::timeouts(&path, &Environment::default()).is_err());
}

#[test]
fn what_is_odd_but_not_wrong_is_a_warning() {
    let rows: &[(&str, &str)] = &[
        (
            "[defaults.scope]\ntenant = \"header:X-Tenant\"\n",
            r#"[defaults]: "tenant" is read from a header, which counts only from peers in "trusted" of [listen], and that is empty: every keyed request will be 400 untrusted-header"#,
        ),
        (
            "[[route]]\nname = \"a\"\nmatch = { path = \"/x/{id}\" }\n[[route]]\nname = \"b\"\nmatch = { path = \"/x/{other}\" }\n",
            r#"[[route]] "b" never gets a request: "a" matches the same"#,
        ),
        (
            "[[route]]\nname = \"a\"\nprobe = { url = \"http://h/{key}\", executed = [200] }\n",
            r#"[[route]] "a": "probe" is never asked: put "probe" into "on_unknown""#,
        ),
        (
            "[[route]]\nname = \"a\"\neffect = { url = \"postgresql://h/shop\" }\n",
            r#""effect" of [[route]] "a" is looked into by `onceward reconcile` alone, which settles nothing: put "effect" into "on_unknown""#,
        ),
        (
            "[defaults]\non_unknown = [\"probe\"]\nprobe = { url = \"http://h/{key}\", not_executed = [404], quiesce = \"10s\" }\n",
            r#"[defaults]: the "quiesce" of "probe" (10s) is less than timeout (30s): the upstream may still be working when it is asked, and what was not done yet would run twice"#,
        ),
        (
            "[identity]\nsecret = \"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=\"\n[store]\nkind = \"postgres\"\nmax_records = 10\npostgres = { url = \"postgresql://h/keys\" }\n",
            r#""max_records" in [store] bounds the embedded store: a database is not bounded by it"#,
        ),
        ("[admin]\ntoken = \"short\"\n", r#""token" in [admin] is shorter than 16 characters: it can be guessed"#),
    ];
    for (text, want) in rows {
        let report = report::check_text("f", &format!("{UPSTREAM}{text}"), &Environment::default());
        assert_eq!(report.errors, [], "{text}");
        assert_eq!(report.warnings.iter().map(|w| w.message.as_str()).collect::<Vec<_>>(), [*want]);
    }
}

#[test]
fn no_message_shows_a_secret() {
    let hidden = "hunter2hunter2";
    for text in [
        format!("[admin]\ntoken = \"{hidden} x\"\n"),
        format!("[identity]\nsecret = \"{hidden}\"\n"),
        format!("[identity]\nsecret = [\"{hidden}\"]\n"),
        format!("[admin]\ntoken = \"{hidden}\" x\n"),
        format!("[[upstream]]\nname = \"b\"\nurl = \"http://u:{hidden}@h\"\n"),
        format!("[[upstream]]\nname = \"b\"\nurl = \"https://u:{hidden}@h\"\n"),
    ] {
        let told = complaint(with_upstream(&text));
        assert!(!told.contains(hidden), "{told}");
    }
}

/// Goal: no file up to the limit costs a stack or minutes. Method: the shapes that would be quadratic
/// or deep, at full size.
#[test]
fn a_hostile_file_of_full_size_is_answered() {
    let fill = |unit: &str| unit.repeat((1 << 20) / unit.len());
    let routes: String = (0..20_000).map(|n| format!("[[route]]\nname = \"r{n}\"\n")).collect();
    for text in [
        fill("[[route]]\n"),
        fill("[[upstream]]\n"),
        fill("["),
        fill("a="),
        fill("\""),
        fill("{"),
        format!("a = {}", fill("[")),
        format!("a = {}", fill("{a=")),
        fill("a."),
        format!("{} = 1", fill("a.")),
        (0..80_000).map(|n| format!("k{n} = 1\n")).collect(),
        format!("{UPSTREAM}[defaults.record]\nrecord = [{0}]\nrelease = [{0}]\n", "200,".repeat(100_000)),
        format!("{UPSTREAM}[defaults]\non_unknown = [{}]\n", "\"retry\",".repeat(80_000)),
        format!("{UPSTREAM}{routes}"),
    ] {
        let report = report::check_text("f", &text, &Environment::default());
        assert!(!report.ok() && report.text().len() < 100_000, "{}", &report.text()[..200]);
    }
}

/// Lines that are nearly right, so that the depths of the reader are reached.
fn near_toml() -> impl Strategy<Value = String> {
    let key = proptest::sample::select(vec![
        "[[route]]",
        "[defaults]",
        "[defaults.key]",
        "[[upstream]]",
        "name = ",
        "url = ",
        "match = ",
        "path = ",
        "on_unknown = ",
        "record = ",
        "retention = ",
        "fingerprint = ",
        "scope = ",
        "from = ",
    ]);
    let value = prop_oneof![
        Just(String::new()),
        "[a-z:/{}*~0-9é-]{0,12}".prop_map(|text| format!("{text:?}")),
        proptest::sample::select(vec![
            "[]",
            "{}",
            "99999999999999999999",
            "-1",
            r#"[{ hold = "1h" }, {}, 1, "retry"]"#,
            r#"{ release_when = [{}, 1], record = [600, "x"] }"#,
            r#"{ principal = ["auto", "none"], tenant = "header:" }"#,
            r#"{ methods = [], path = "/{a}/{*b}/c" }"#,
        ])
        .prop_map(str::to_owned),
    ];
    proptest::collection::vec((key, value), 0..24)
        .prop_map(|lines| lines.into_iter().map(|(key, value)| format!("{key}{value}\n")).collect())
}

proptest! {
    #[test]
    fn no_file_panics(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let (_folder, path) = file(&bytes);
        let _ = Config::load(Some(&path), &Flags::default(), &Environment::default());
        let _ = report::check(&path, &Environment::default());
    }

    #[test]
    fn no_nearly_right_file_panics(text in near_toml()) {
        if let Err(error) = parse(&text) {
            prop_assert!(!error.to_string().is_empty());
        }
        let report = report::check_text("f", &text, &Environment::default());
        prop_assert_eq!(report.json()["ok"].as_bool(), Some(report.ok()));
    }

    #[test]
    fn no_override_panics(
        name in "[A-Z_0-9]{0,30}",
        section in "(LISTEN|ROUTE__0|UPSTREAM|DEFAULTS__KEY)",
        value: String,
    ) {
        let environment = Environment::from_pairs([(format!("ONCEWARD_{section}__{name}"), value)]);
        let _ = Config::parse("f", UPSTREAM, &Flags::default(), &environment);
    }
}
