//! The store in Redis from outside: several gateways on one Redis, what they refuse, what is left when one dies.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use servers::{Redis, Sentinels};

use super::support::{
    Answer, Client, Gate, Gateway, Start, Step, Upstream, answer, charged, metric, onceward, output, post, until,
};

const BODY: &str = "{\"amount\":5}";
/// Of each gateway; in all tests the two share them.
const DUPLICATES: usize = 100;
const INSERTS: &str = "onceward_store_operation_seconds_count{store=\"redis\",operation=\"insert\",result=\"ok\"}";

pub(super) fn secret(of: u8) -> String {
    STANDARD.encode([of; 32])
}

/// `redis` is what stands in `[store.redis]`, `more` goes on in `[defaults]`.
pub(super) fn config(redis: &str, more: &str) -> String {
    let secret = secret(7);
    format!(
        "[identity]\nsecret = \"{secret}\"\n[store]\nkind = \"redis\"\ndeadline = \"5s\"\n[store.redis]\n{redis}\n\
         [defaults]\ndurability = \"cache\"\nscope = {{ env = \"fixed:test\" }}\n{more}"
    )
}

pub(super) fn url(server: &Redis) -> String {
    format!("url = \"{}\"", server.url())
}

fn before(upstream: &Upstream, server: &Redis, more: &str) -> Start {
    Start::before(upstream).config(&config(&url(server), more))
}

/// Answers when the gate opens.
pub(super) async fn gated(gate: &Gate) -> Upstream {
    let gate = gate.clone();
    Upstream::start(move |_, before| vec![Step::Until(gate.clone()), charged(before).into()]).await
}

// contract: store.kind, store.redis.url, store.redis.username, store.redis.password, store.redis.strategy
#[tokio::test]
async fn two_gateways_on_one_redis_are_one_for_a_key() {
    // The rights that are shipped, and no others.
    let acl = include_str!("../../../../deploy/redis/onceward.acl").replace("change-me", "hush");
    let server = Redis::start_with_acl(&[], &acl).unwrap();
    let upstream = Upstream::charging().await;
    let apart = format!("{}\nusername = \"onceward\"\npassword = \"env:REDIS\"\nstrategy = \"script\"", url(&server));
    let one = Start::before(&upstream).config(&config(&apart, "")).env("REDIS", "hush").start().await;
    let within = format!("url = \"{}\"", server.url_of("onceward", "hush"));
    let two = Start::before(&upstream).config(&config(&within, "")).start().await;

    let first = one.post("/pay", "k-1", BODY).await;
    let again = two.post("/pay", "k-1", BODY).await;
    assert!(first.status == 201 && !first.is_replay() && again.is_replay(), "{first:?} {again:?}");
    assert_eq!(first.text(), again.text());
    assert_eq!(two.post("/pay", "k-1", "{\"amount\":6}").await.slug(), "key-reused");
    assert_eq!(upstream.effects("k-1"), 1);
    assert!(metric(&one.metrics().await, "onceward_circuit_state{store=\"redis\"}") < 0.5);
    assert_eq!(two.records().await.len(), 1, "each sees all");
    assert!(![one.log(), two.log()].concat().contains("hush"));
}

#[tokio::test]
async fn where_scripts_are_forbidden_steps_are_transactions_beside_gateways_that_take_scripts() {
    let acl = "user default off\nuser gateway on >hush ~idemp:* &idemp:* +@all -@scripting";
    let server = Redis::start_with_acl(&[], acl).unwrap();
    let upstream = Upstream::charging().await;
    let start = |user: &str, password: &str, strategy: &str| {
        let redis = format!("url = \"{}\"\nstrategy = \"{strategy}\"", server.url_of(user, password));
        Start::before(&upstream).config(&config(&redis, ""))
    };
    let (code, said) = start("gateway", "hush", "script").refused().await;
    assert!(code == 1 && said.contains("lacks a right"), "{code} {said}");
    let watches = start("gateway", "hush", "watch").start().await;
    let scripts = start(servers::redis::USER, servers::redis::PASSWORD, "script").start().await;
    let first = watches.post("/pay", "k-1", BODY).await;
    assert!(first.status == 201 && scripts.post("/pay", "k-1", BODY).await.is_replay(), "{first:?}");
    assert_eq!(scripts.post("/pay", "k-2", BODY).await.status, 201);
    assert!(watches.post("/pay", "k-2", BODY).await.is_replay());
    assert_eq!(upstream.received().len(), 2);
}

/// Sends so many at once.
async fn duplicates(gateway: &Gateway) -> Vec<Client> {
    let mut clients = Vec::new();
    for _ in 0..DUPLICATES {
        let mut client = gateway.connect().await;
        client.send(post("/pay", "k-1", BODY)).await;
        clients.push(client);
    }
    clients
}

/// Until whoever came has looked at the key so often.
async fn looked(gateway: &Gateway, times: usize) {
    let times = f64::from(u32::try_from(times).unwrap());
    until("the looks at the key", async || metric(&gateway.metrics().await, INSERTS) >= times).await;
}

/// Goal: of any number of duplicates over two gateways, one executes and all have its answer, those of the other gateway
/// as soon as it is there. Method: the upstream answers once all wait, those of the other gateway by a subscription.
#[tokio::test]
async fn two_hundred_duplicates_over_two_gateways_are_one_call_and_have_one_answer() {
    let (server, gate) = (Redis::start(&[]).unwrap(), Gate::shut());
    let upstream = gated(&gate).await;
    let (one, two) = (before(&upstream, &server, "").start().await, before(&upstream, &server, "").start().await);
    let mut clients = vec![one.connect().await];
    clients[0].send(post("/pay", "k-1", BODY)).await;
    upstream.reached("k-1", 1).await;
    clients.extend(duplicates(&one).await);
    clients.extend(duplicates(&two).await);
    // Each looks, and those whose holder is elsewhere once more when they have begun to listen.
    looked(&one, 1 + DUPLICATES).await;
    looked(&two, 2 * DUPLICATES).await;
    let channels = server.command(&["PUBSUB", "CHANNELS", "idemp:*"]).unwrap();
    let of_keys = channels.lines().filter(|channel| channel.contains("{p"));
    assert_eq!(of_keys.count(), 1, "{channels}");
    gate.open();
    let mut answers: Vec<Answer> = Vec::new();
    for client in &mut clients {
        answers.push(client.answer().await);
    }
    let first = &answers[0];
    assert!(first.status == 201 && !first.is_replay(), "{first:?}");
    assert!(answers[1..].iter().all(|answer| answer.is_replay() && answer.essence() == first.essence()));
    assert_eq!((answers.len(), upstream.received().len()), (1 + 2 * DUPLICATES, 1));
}

#[tokio::test]
async fn what_a_killed_gateway_left_in_doubt_is_in_doubt_for_the_others_and_is_settled_from_there() {
    let (server, gate) = (Redis::start(&[]).unwrap(), Gate::shut());
    let upstream = gated(&gate).await;
    let lease = "lease = \"1s\"\nin_flight = { wait = \"20s\" }\n";
    let mut dies = before(&upstream, &server, lease).start().await;
    let lives = before(&upstream, &server, lease).start().await;
    let mut client = dies.connect().await;
    client.send(post("/pay", "k-1", BODY)).await;
    upstream.reached("k-1", 1).await;
    dies.kill().await;
    // It waits for the holder, whose lease ends with nobody there.
    let again = lives.post("/pay", "k-1", BODY).await;
    assert_eq!((again.status, again.slug().as_str()), (409, "outcome-unknown"), "{again:?}");
    assert_eq!(upstream.effects("k-1"), 1);
    let (_, listed) = keys(&lives, &["list", "--state", "unknown"]).await;
    assert!(listed.lines().count() == 2 && listed.contains("unknown"), "{listed}");
    let settled = ["resolve", "--state", "unknown", "--route", "default", "--as", "executed"];
    let (code, said) = keys(&lives, &settled).await;
    assert_eq!(code, Some(0), "{said}");
    let replay = lives.post("/pay", "k-1", BODY).await;
    assert!(replay.status == 200 && replay.is_replay(), "{replay:?}");
    assert_eq!(upstream.effects("k-1"), 1);
}

#[tokio::test]
async fn what_is_in_doubt_is_asked_about_by_one_gateway_and_by_another_when_that_one_is_gone() {
    let server = Redis::start(&[]).unwrap();
    let upstream = Upstream::start(|_, _| vec![Step::Close]).await;
    // They cannot tell.
    let books = Upstream::start(|_, _| vec![answer(503, &[], "").into()]).await;
    let probe = format!("{{ url = \"http://{}/{{record}}\", executed = [200], quiesce = \"0s\" }}", books.address);
    let defaults = format!("on_unknown = [\"probe\"]\nprobe = {probe}");
    let both =
        [before(&upstream, &server, &defaults).start().await, before(&upstream, &server, &defaults).start().await];
    assert_eq!(both[0].post("/pay", "k-1", BODY).await.slug(), "upstream-failed");
    let asked = async |gateway: &Gateway| {
        let metrics = gateway.metrics().await;
        let line = metrics.lines().find(|line| line.starts_with("onceward_probes_total")).unwrap_or("0").to_owned();
        line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    until("two probes", async || books.received().len() >= 2).await;
    let (by_one, by_two) = (asked(&both[0]).await, asked(&both[1]).await);
    assert!(by_one == 0 || by_two == 0, "{by_one} {by_two}");
    let known = metric(&both[0].metrics().await, "onceward_unknown_open{route=\"default\"}");
    assert!(known > 0.5, "both count what is in doubt");
    let [one, two] = both;
    let (mut has_turn, other) = if by_one > 0 { (one, two) } else { (two, one) };
    has_turn.kill().await;
    until("the other's probe", async || asked(&other).await > 0).await;
}

/// Runs `onceward keys` with the gateway's file: exit code, and what it said.
pub(super) async fn keys(gateway: &Gateway, args: &[&str]) -> (Option<i32>, String) {
    let mut command = onceward();
    command.arg("keys").args(args).arg("--config").arg(gateway.start.config_file());
    let done = output(command).await;
    (done.status.code(), String::from_utf8(done.stdout).unwrap() + &String::from_utf8(done.stderr).unwrap())
}

#[tokio::test]
async fn records_are_listed_shown_and_forgotten_while_gateways_run() {
    let (server, upstream) = (Redis::start(&[]).unwrap(), Upstream::charging().await);
    let gateway = before(&upstream, &server, "[[route]]\nname = \"pay\"\n").start().await;
    for key in ["k-1", "k-2", "k-3"] {
        assert_eq!(gateway.post("/pay", key, BODY).await.status, 201);
    }
    let (_, listed) = keys(&gateway, &["list", "--route", "pay"]).await;
    assert_eq!(listed.lines().count(), 4, "{listed}");
    let (code, shown) = keys(&gateway, &["get", "--key", "k-2", "--route", "pay"]).await;
    assert!(code == Some(0) && shown.contains("completed"), "{shown}");
    let (code, said) = keys(&gateway, &["forget", "--key", "k-2", "--route", "pay"]).await;
    assert_eq!(code, Some(0), "{said}");
    assert!(!gateway.post("/pay", "k-2", BODY).await.is_replay());
    assert_eq!((upstream.effects("k-1"), upstream.effects("k-2")), (1, 2));
}

#[tokio::test]
async fn a_start_needs_a_server_that_can_keep_records_and_the_secret_that_they_were_made_with() {
    let upstream = Upstream::charging().await;
    let server = Redis::start(&[]).unwrap();
    let start = |redis: &str| Start::before(&upstream).config(&config(redis, ""));
    let at = |port: u16| start(&format!("url = \"redis://127.0.0.1:{port}\""));

    let (code, said) = start("url = \"redis://a,b\"").refused().await;
    assert!(code == 2 && said.contains("several servers"), "{code} {said}");
    let guarded = Redis::start_with_acl(&[], "user default off").unwrap();
    for user in ["admin", "nobody"] {
        let wrong = format!("{}\nusername = \"{user}\"\npassword = \"marker\"", url(&guarded));
        let (code, said) = start(&wrong).refused().await;
        assert!(code == 1 && said.contains("check the user and the password"), "{code} {said}");
        assert!(!said.contains("marker"), "{said}");
    }
    let replica = server.replica().unwrap();
    let (code, said) = at(replica.port()).refused().await;
    assert!(code == 1 && said.contains("replica") && said.contains("the primary"), "{code} {said}");
    let node = Redis::start(&[("cluster-enabled", "yes")]).unwrap();
    let (code, said) = at(node.port()).refused().await;
    assert!(code == 1 && said.contains("redis+cluster://"), "{code} {said}");
    // Nobody listens there.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (code, said) = at(free).refused().await;
    assert!(code == 1 && said.contains(&format!("at 127.0.0.1:{free} does not open")), "{code} {said}");

    drop(at(server.port()).start().await);
    let other = config(&url(&server), "").replace(&secret(7), &secret(8));
    let (code, said) = Start::before(&upstream).config(&other).refused().await;
    assert!(code == 1 && said.contains("another install secret") && !said.contains(&secret(7)), "{code} {said}");
    let both = other.replace("[store]", &format!("previous = \"{}\"\n[store]", secret(7)));
    drop(Start::before(&upstream).config(&both).start().await);
    // From then on the new one counts.
    drop(Start::before(&upstream).config(&other).start().await);
}

// contract: store.redis.sentinel_username, store.redis.sentinel_password
#[tokio::test]
async fn sentinels_name_the_primary_to_whoever_they_know() {
    let upstream = Upstream::charging().await;
    let sentinels = Sentinels::start(&[], 0, Some(("watch", "over"))).unwrap();
    let hosts: Vec<String> = sentinels.ports().iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let url = format!("url = \"redis+sentinel://{}/{}\"", hosts.join(","), Sentinels::NAME);
    let known = format!("{url}\nsentinel_username = \"watch\"\nsentinel_password = \"over\"");
    let gateway = Start::before(&upstream).config(&config(&known, "")).start().await;
    assert_eq!(gateway.post("/pay", "k-1", BODY).await.status, 201);
    assert_ne!(sentinels.nodes()[0].command(&["DBSIZE"]).unwrap(), "0");
    let (code, said) = Start::before(&upstream).config(&config(&url, "")).refused().await;
    assert!(code == 1 && said.contains("check the user and the password"), "{code} {said}");
}

// contract: store.redis.ca, store.redis.cert, store.redis.key
#[tokio::test]
async fn the_server_is_spoken_to_over_tls_by_the_name_in_its_certificate_and_knows_its_clients() {
    let signed = || rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let (own, client, other) = (signed(), signed(), signed());
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, pem: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, pem).unwrap();
        path.display().to_string()
    };
    let (known, own_ca) = (file("client.pem", &client.cert.pem()), file("own.pem", &own.cert.pem()));
    let (key, other_ca) =
        (file("client.key", &client.signing_key.serialize_pem()), file("other.pem", &other.cert.pem()));
    let settings = [("tls-auth-clients", "yes"), ("tls-ca-cert-file", known.as_str())];
    let server = Redis::start_with_tls(&settings, &own.cert.pem(), &own.signing_key.serialize_pem()).unwrap();
    let upstream = Upstream::charging().await;
    let start = |ca: &str, more: &str| {
        let redis = format!("url = \"{}\"\nca = \"{ca}\"\n{more}", server.tls_url().unwrap());
        Start::before(&upstream).config(&config(&redis, ""))
    };
    let shown = format!("cert = \"{known}\"\nkey = \"{key}\"");
    let gateway = start(&own_ca, &shown).start().await;
    assert_eq!(gateway.post("/pay", "k-1", BODY).await.status, 201);
    let (code, said) = start(&other_ca, &shown).refused().await;
    assert!(code == 1 && said.contains("certificate"), "{code} {said}");
    let (code, said) = start(&own_ca, "").refused().await;
    assert!(code == 1 && said.contains("ertificate"), "{code} {said}");
    let (code, said) = start(&own_ca, &format!("cert = \"{known}\"")).refused().await;
    assert!(code == 2 && said.contains("a certificate and its key go together"), "{code} {said}");
    let (code, said) = start("/nowhere/ca.pem", &shown).refused().await;
    assert!(code == 2 && said.contains("[store.redis]: /nowhere/ca.pem"), "{code} {said}");
}
