//! The example of that name: its process is killed between the phases of an order, and its client repeats itself.

#![cfg(feature = "tokio-postgres")]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "../examples/order_postgres.rs"]
#[expect(dead_code, unreachable_pub, reason = "its main is the example's")]
mod example;
mod shop;

use std::{
    process::Stdio,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{self, HeaderMap, StatusCode},
    routing::post,
};
use http_body_util::BodyExt as _;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use onceward_core::key::child_key;
use servers::Postgres;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::TcpListener,
    process::{Child, Command},
    sync::Semaphore,
};

/// The process that the others start.
#[tokio::test]
#[ignore = "the shop: the other test starts it as a process of its own"]
async fn serve() {
    let of = |name: &str| std::env::var(name).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    example::serve(listener, &of("SHOP_URL"), of("SHOP_CHARGES"), Duration::from_secs(1)).await.unwrap();
}

/// A process of the shop, and where it takes orders.
async fn start(server: &Postgres, charges: &str) -> (Child, String) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "serve", "--ignored", "--nocapture"]);
    command.env("SHOP_URL", server.url("shop")).env("SHOP_CHARGES", charges);
    let mut child = command.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    while let Some(line) = lines.next_line().await.unwrap() {
        if let Some(at) = line.find("http://") {
            return (child, line.split_at(at).1.to_owned());
        }
    }
    panic!("it did not start");
}

async fn ask(orders: &str, key: &str, item: &'static str) -> Option<(u16, String)> {
    let request = http::Request::post(orders).header("idempotency-key", key).body(Body::from(item)).unwrap();
    let response = Client::builder(TokioExecutor::new()).build_http().request(request).await.ok()?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.ok()?.to_bytes();
    Some((status, String::from_utf8(body.to_vec()).unwrap()))
}

/// As a client that repeats itself while it is told to come back.
async fn order(orders: &str, key: &str, item: &'static str) -> (u16, String) {
    for _ in 0..200 {
        let answer = ask(orders, key, item).await.unwrap();
        if answer.0 != 503 {
            return answer;
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    panic!("{key} is stuck");
}

/// Somebody else's API, which is idempotent by key: the keys of all calls, and how many may be answered.
#[derive(Clone)]
struct Charges {
    calls: Arc<Mutex<Vec<String>>>,
    called: Arc<Semaphore>,
    answered: Arc<Semaphore>,
}

impl Charges {
    async fn start() -> (Self, String) {
        let charges =
            Self { calls: Arc::default(), called: Arc::new(Semaphore::new(0)), answered: Arc::new(Semaphore::new(0)) };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/charges", listener.local_addr().unwrap());
        let app = Router::new().route("/charges", post(Self::charge)).with_state(charges.clone());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        (charges, url)
    }

    /// It takes no money for caps.
    async fn charge(State(charges): State<Self>, headers: HeaderMap, item: String) -> (StatusCode, String) {
        let key = headers.get("idempotency-key").unwrap().to_str().unwrap().to_owned();
        charges.calls.lock().unwrap().push(key.clone());
        charges.called.add_permits(1);
        charges.answered.acquire().await.unwrap().forget();
        if item == "cap" {
            return (StatusCode::PAYMENT_REQUIRED, "no money".to_owned());
        }
        (StatusCode::OK, format!("receipt {key}"))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_whose_process_is_killed_between_its_phases_goes_on_and_is_charged_under_one_key() {
    let server = shop::server().await;
    let tables = "create table stock (item text primary key, count bigint not null check (count >= 0)); \
         create table sale (id bigint generated always as identity, item text not null, receipt text not null); \
         insert into stock values ('hat', 1), ('cap', 1); \
         create function put_back(record_id bytea, key text, payload jsonb) returns void language sql security definer \
             set search_path = public as 'update stock set count = count + 1 where item = payload->>''item'''; \
         select onceward.allow_compensation('public.put_back')";
    server.psql("shop", tables).unwrap();
    let (charges, url) = Charges::start().await;

    // Killed while it is charged: reserved, and not sold.
    let (mut killed, orders) = start(&server, &url).await;
    let lost = tokio::spawn(async move { ask(&orders, "a", "hat").await });
    charges.called.acquire().await.unwrap().forget();
    assert_eq!(server.psql("shop", "select count from stock where item = 'hat'").unwrap(), "0");
    killed.kill().await.unwrap();
    assert_eq!(lost.await.unwrap(), None);

    // Killed while it is sold: charged again, under the same key.
    let (client, connection) = tokio_postgres::connect(&server.url("shop"), tokio_postgres::NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute("begin; lock table sale in exclusive mode").await.unwrap();
    charges.answered.add_permits(100);
    let (mut killed, orders) = start(&server, &url).await;
    let lost = tokio::spawn(async move { order(&orders, "a", "hat").await });
    let waits = "select count(*) from pg_locks where not granted and relation = 'sale'::regclass";
    let is_waited_for = (0..1_000).any(|_| server.psql("shop", waits).unwrap() == "1");
    assert!(is_waited_for, "nothing is sold");
    killed.kill().await.unwrap();
    assert!(lost.await.is_err(), "nobody answered");
    client.batch_execute("rollback").await.unwrap();

    let (_running, orders) = start(&server, &url).await;
    let derived = child_key("a", "charge");
    let first = order(&orders, "a", "hat").await;
    // A number that was rolled back is not given again.
    let receipt = first.1.split_once(", ").map(|(_, receipt)| receipt);
    assert_eq!((first.0, receipt), (201, Some(&*format!("receipt {derived}"))));
    assert_eq!(order(&orders, "a", "hat").await, first);
    assert_eq!(*charges.calls.lock().unwrap(), [derived.clone(), derived], "charged twice, by one key");
    assert_eq!(server.psql("shop", "select count from stock where item = 'hat'").unwrap(), "0", "reserved once");
    assert_eq!(server.psql("shop", "select count(*) from sale").unwrap(), "1", "sold once");

    // Refused for good, before the charge.
    let refused = (409, "no hat is left".to_owned());
    assert_eq!(order(&orders, "b", "hat").await, refused);
    assert_eq!(order(&orders, "b", "hat").await, refused);
    assert_eq!(order(&orders, "b", "cap").await.0, 422, "another order under the same key");
    assert_eq!(charges.calls.lock().unwrap().len(), 2);

    // Refused by the charge: what was reserved is put back, once, and what was sold stays sold.
    let compensate = "select coalesce(onceward.compensate(), 'none is due')";
    assert_eq!(server.psql("shop", compensate).unwrap(), "none is due");
    let refused = (402, "no money".to_owned());
    assert_eq!(order(&orders, "c", "cap").await, refused);
    let stock = "select string_agg(item || count, ' ' order by item) from stock";
    assert_eq!(server.psql("shop", stock).unwrap(), "cap0 hat0");
    let done: Vec<String> = (0..2).map(|_| server.psql("shop", compensate).unwrap()).collect();
    assert_eq!(done, ["done", "none is due"]);
    assert_eq!(server.psql("shop", stock).unwrap(), "cap1 hat0");
    assert_eq!(order(&orders, "c", "cap").await, refused);
    assert_eq!(charges.calls.lock().unwrap().len(), 3, "it is not asked again");
}
