//! `onceward reconcile`, and the same in the background: records held against what an upstream wrote down, from outside.

use std::sync::Arc;

use serde_json::Value;
use servers::{Postgres, postgres::PASSWORD};

use super::support::{Gate, Gateway, Received, Start, Step, Upstream, answer, metric, onceward, output, post, until};

const BODY: &str = "{\"amount\":5}";
const SECRET: &str = "BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=";

/// The upstream's database, with its own table of payments; the gateway's user may read that one column.
async fn shop() -> Arc<Postgres> {
    let server = Postgres::start(&[]).unwrap();
    server.create_database("shop").unwrap();
    let mut command = onceward();
    command.args(["migrate", "--database", &server.url("shop")]);
    assert!(output(command).await.status.success());
    let tables = "CREATE SCHEMA books; CREATE TABLE books.payment (idem_id bytea, amount int);
        CREATE ROLE looker LOGIN PASSWORD 'look' IN ROLE onceward_gateway;
        GRANT USAGE ON SCHEMA books TO looker; GRANT SELECT (idem_id) ON books.payment TO looker;";
    server.psql("shop", tables).unwrap();
    Arc::new(server)
}

/// A payment as the upstream makes it: effect and row in one transaction.
fn pays(server: &Postgres, record: &str, fence: &str) {
    let sql = format!(
        "BEGIN; INSERT INTO books.payment SELECT onceward.record_id('{record}'), 5
         WHERE onceward.effect(onceward.record_id('{record}'), {fence}, 'paid', 201); COMMIT"
    );
    server.psql("shop", &sql).unwrap();
}

fn of(request: &Received) -> [String; 2] {
    ["idempotency-record", "idempotency-fence"].map(|name| request.header(name).unwrap().to_owned())
}

/// The records in files, or in the same database.
fn config(server: &Postgres, is_within: bool, on_unknown: &str, more: &str) -> String {
    let url = server.url("shop").replace(&format!("postgres:{PASSWORD}"), "looker");
    let at = format!("url = \"{url}\", password = \"look\", tls = \"off\"");
    let (store, effect) = if is_within {
        let store =
            format!("[store]\nkind = \"postgres\"\ndeadline = \"5s\"\npostgres = {{ {at}, connections = 1 }}\n");
        (store, String::new())
    } else {
        (String::new(), format!("{at}, "))
    };
    format!(
        "[identity]\nsecret = \"{SECRET}\"\n{store}{more}\n[[route]]\nname = \"pay\"\nmatch = {{ path = \"/pay\" }}\nlease = \"1s\"\n\
         in_flight = {{ wait = \"100ms\" }}\non_unknown = {on_unknown}\n\
         effect = {{ {effect}name = \"paid\", table = \"books.payment\", id_column = \"idem_id\" }}\n"
    )
}

/// Exit code and JSON of the command, on the configuration of `start`.
async fn reconcile(start: &Start, more: &[&str]) -> (i32, Value, String) {
    let mut command = onceward();
    command
        .args(["reconcile", "--json", "--config"])
        .arg(start.config_file())
        .arg("--data")
        .arg(start.data())
        .args(more);
    let done = output(command).await;
    let (out, err) = (String::from_utf8(done.stdout).unwrap(), String::from_utf8(done.stderr).unwrap());
    (done.status.code().unwrap(), serde_json::from_str(&out).unwrap_or_default(), err)
}

fn counts(report: &Value) -> [u64; 4] {
    ["orphaned_claim", "effect_without_outcome", "outcome_without_effect", "stale_holder"]
        .map(|kind| report["found"][kind]["count"].as_u64().unwrap_or(99))
}

/// The upstream breaks off after it paid (`paid-…`), before it paid (`lost-…`), hangs (`hangs-…`), answers without having
/// paid (`lies-…`), or does as it says.
async fn upstream(server: &Arc<Postgres>, gate: &Gate) -> Upstream {
    let (server, gate) = (Arc::clone(server), gate.clone());
    Upstream::start(move |request, _| {
        let [record, fence] = of(request);
        match request.key().split('-').next() {
            Some("lost") => return vec![Step::Close],
            Some("hangs") => return vec![Step::Until(gate.clone()), Step::Close],
            Some("lies") => {}
            what => {
                pays(&server, &record, &fence);
                if what == Some("paid") {
                    return vec![Step::Close];
                }
            }
        }
        vec![answer(201, &[], "done").into()]
    })
    .await
}

async fn history(gateway: &Gateway, upstream: &Upstream) -> [String; 2] {
    for (key, status) in [("good-1", 201), ("good-2", 201), ("lies-1", 201), ("lost-1", 502), ("paid-1", 502)] {
        assert_eq!(gateway.post("/pay", key, BODY).await.status, status, "{key}");
    }
    let mut client = gateway.connect().await;
    client.send(post("/pay", "hangs-1", BODY)).await;
    upstream.reached("hangs-1", 1).await;
    of(&upstream.last())
}

// contract: route.effect.table, route.effect.id_column
#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_told_by_kind_and_repaired_as_far_as_the_route_allows() {
    for is_within in [false, true] {
        let (server, gate) = (shop().await, Gate::shut());
        let upstream = upstream(&server, &gate).await;
        let start = Start::before(&upstream).config(&config(&server, is_within, "[\"hold\"]", ""));
        let mut gateway = start.start().await;
        assert_eq!(gateway.post("/pay", "good-0", BODY).await.status, 201);
        let (code, report, said) = reconcile(&start, &[]).await;
        assert_eq!((code, counts(&report)), (0, [0; 4]), "{said} {report}");
        let [record, fence] = history(&gateway, &upstream).await;
        // Somebody took the fence of the one that hangs.
        let look = format!("SELECT onceward.probe_effect(onceward.record_id('{record}'), {fence} + 1, 'paid')");
        server.psql("shop", &look).unwrap();

        let (code, report, said) = reconcile(&start, &[]).await;
        assert_eq!((code, counts(&report)), (1, [1; 4]), "{said} {report}");
        assert_eq!(report["found"]["stale_holder"]["examples"][0]["record_id"], record, "{report}");
        assert_eq!(report["found"]["orphaned_claim"]["examples"][0]["state"], "unknown");
        assert_eq!(report["records"], 7, "{report}");
        let (code, bare, _) = reconcile(&start, &["--examples", "0", "--route", "pay"]).await;
        assert_eq!((code, bare["found"]["stale_holder"]["examples"].as_array().map(Vec::len)), (1, Some(0)));
        let (code, _, said) = reconcile(&start, &["--route", "nothing"]).await;
        assert!(code == 2 && said.contains("no route"), "{said}");
        // The route holds: nothing is settled.
        let (code, report, said) = reconcile(&start, &["--repair"]).await;
        assert_eq!((code, counts(&report), report["repaired"]["settled"].as_u64()), (1, [1; 4], Some(0)), "{said}");
        let mut command = onceward();
        command.args(["reconcile", "--config"]).arg(start.config_file()).arg("--data").arg(start.data());
        let text = String::from_utf8(output(command).await.stdout).unwrap();
        assert!(text.contains("stale_holder") && text.contains(&record), "{text}");

        // It is looked for from now on, and what is not there is let run again: the process is gone, and a command does it.
        gateway.kill().await;
        let effect = start.clone().config(&config(&server, is_within, "[\"effect\"]", ""));
        let text = std::fs::read_to_string(start.config_file()).unwrap();
        std::fs::write(start.config_file(), text.replace("on_unknown = [\"hold\"]", "on_unknown = [\"effect\"]"))
            .unwrap();
        let settled = std::cell::Cell::new(0);
        until("the last lease to end", async || {
            let (_, report, said) = reconcile(&effect, &["--repair"]).await;
            settled.set(settled.get() + report["repaired"]["settled"].as_u64().expect(&said));
            counts(&report) == [0, 0, 1, 0]
        })
        .await;
        assert_eq!(settled.get(), 3, "what was answered without an effect is left as it is");
        let gateway = effect.start().await;
        let paid = gateway.post("/pay", "paid-1", BODY).await;
        assert!(paid.status == 201 && paid.is_replay(), "{paid:?}");
        assert_eq!(upstream.effects("paid-1"), 1);
        // A row that is gone, though the effect was written down.
        server.psql("shop", "DELETE FROM books.payment").unwrap();
        let (_, report, _) = reconcile(&effect, &[]).await;
        assert!(report["found"]["outcome_without_effect"]["count"].as_u64() >= Some(4), "{report}");
        server.psql("shop", "REVOKE SELECT (idem_id) ON books.payment FROM looker").unwrap();
        let (code, _, said) = reconcile(&effect, &[]).await;
        assert_eq!(code, 2, "it cannot be told: {said}");
    }
}

// contract: reconcile.every, reconcile.compensation_urls
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_looks_and_undoes_in_the_background_one_of_them_at_a_time() {
    let (server, gate) = (shop().await, Gate::shut());
    let upstream = upstream(&server, &gate).await;
    let undoing = Upstream::start(|_, before| vec![answer(if before == 0 { 500 } else { 204 }, &[], "").into()]).await;
    let more = format!("[reconcile]\nevery = \"1s\"\ncompensation_urls = [\"http://{}/undo/\"]", undoing.address);
    let text = config(&server, true, "[\"hold\"]", &more);
    let (one, two) = (Start::before(&upstream).config(&text), Start::before(&upstream).config(&text));
    let file = one.config_file();
    let (one, two) = (one.start().await, two.start().await);
    let [record, fence] = history(&one, &upstream).await;
    let register = |target: &str| {
        let sql = format!(
            "SELECT onceward.compensate_with(onceward.record_id('{record}'), {fence}, '{target}', '{target}', '{{\"refund\": 5}}')"
        );
        server.psql("shop", &sql).unwrap();
    };
    register(&format!("http://{}/undo/payment", undoing.address));
    register("https://elsewhere.example/");
    until("both kinds to be told", async || {
        let sum = async |gateway: &Gateway, kind: &str| {
            let metrics = gateway.metrics().await;
            let name = format!("onceward_discrepancies{{kind=\"{kind}\"}}");
            if metrics.contains(&name) { metric(&metrics, &name) } else { 0.0 }
        };
        let told = async |kind| sum(&one, kind).await + sum(&two, kind).await >= 1.0;
        told("orphaned_claim").await && told("effect_without_outcome").await
    })
    .await;
    // It fails: the other URL is not listed, and nobody comes to it.
    gate.open();
    until("it to be unknown", async || {
        let list = one.records().await;
        list.iter().any(|one| one["record_id"] == record.as_str() && one["state"] == "unknown")
    })
    .await;
    assert!(undoing.received().is_empty(), "nothing while it is unknown");
    let mut command = onceward();
    command.args(["keys", "resolve", "--as", "failed", &record, "--config"]).arg(file);
    let resolved = output(command).await;
    assert!(resolved.status.success(), "{resolved:?}");
    let state = |name: &str| {
        let sql = format!("SELECT state FROM onceward.compensation WHERE name LIKE '{name}%'");
        server.psql("shop", &sql).unwrap()
    };
    assert_eq!(state("https://elsewhere"), "due");
    server.psql("shop", "UPDATE onceward.compensation SET state = 'settled' WHERE name LIKE 'https%'").unwrap();
    until("it to be undone", async || {
        // The pause after the first try is over.
        let over = "UPDATE onceward.compensation SET not_before = 0 WHERE state = 'due' AND last_error <> ''";
        server.psql("shop", over).unwrap();
        state("http:") == "done"
    })
    .await;
    let received = undoing.received();
    let keys: Vec<&str> = received.iter().map(Received::key).collect();
    assert!(keys.len() >= 2 && keys.windows(2).all(|two| two[0] == two[1]), "{keys:?}");
}
