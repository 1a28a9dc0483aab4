//! What somebody sends who means harm: it costs him more than us, and nobody else notices.
//!
//! `docs/security.md` lists every attack that was thought of, with the tests that show its end; those here have no other
//! home.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{join_all, poll_fn};
use http::Request;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::support::{Gate, Gateway, Start, Step, Upstream, answer, charged, metric, request, soon, until};

async fn h2_client(gateway: &Gateway) -> h2::client::SendRequest<Bytes> {
    let stream = TcpStream::connect(gateway.proxy).await.expect("a connection");
    let (client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    client
}

fn h2_post(key: &str) -> Request<()> {
    Request::post("http://api.test/pay").header("idempotency-key", key).body(()).expect("a request")
}

#[tokio::test]
async fn ten_thousand_duplicates_wait_and_get_the_one_answer() {
    const CONNECTIONS: usize = 100;
    const EACH: usize = 100;
    let gate = Gate::shut();
    let held = gate.clone();
    let upstream = Upstream::start(move |_, before| vec![Step::Until(held.clone()), charged(before).into()]).await;
    let config = "[defaults]\nin_flight = { wait = \"120s\", waiters_per_key = 20000 }\ntimeout = \"120s\"\n";
    // A disk that is busy with other tests may take longer than the default.
    let start = Start::before(&upstream).config(config).env("ONCEWARD_STORE__DEADLINE", "20s");
    let gateway = start.start().await;
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(h2_client(&gateway).await);
    }
    let mut answers = Vec::new();
    for client in &mut clients {
        for _ in 0..EACH {
            poll_fn(|context| client.poll_ready(context)).await.expect("room for a stream");
            answers.push(client.send_request(h2_post("k-1"), true).expect("sent").0);
        }
    }
    let all = (CONNECTIONS * EACH) as f64;
    until("all but one to wait", || async {
        let metrics = gateway.metrics().await;
        metric(&metrics, "onceward_waiters") >= all - 1.0
    })
    .await;
    gate.open();
    let answers = soon("all answers", join_all(answers)).await;
    for answer in answers {
        assert_eq!(answer.expect("an answer").status(), 201);
    }
    assert_eq!(upstream.effects("k-1"), 1);
    let peak = gateway.resident_max();
    assert!(peak < 512 << 20, "ten thousand that wait take {peak} bytes");
}

/// A frame of HTTP/2, RFC 9113 section 4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Sends `pieces` over HTTP/2 until the proxy ends the connection; what it said, or nothing where it took them all.
async fn cut_off(gateway: &Gateway, pieces: impl Iterator<Item = Vec<u8>>) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(gateway.proxy).await.expect("a connection");
    let mut said = Vec::new();
    let flood = async {
        let (mut read, mut write) = stream.split();
        let reading = async {
            // A reset is an end as well.
            while read.read_buf(&mut said).await.is_ok_and(|read| read > 0) {}
        };
        let writing = async {
            write.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
            write.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
            for piece in pieces {
                write.write_all(&piece).await?;
            }
            Ok::<_, std::io::Error>(())
        };
        let mut writing = std::pin::pin!(writing);
        let mut reading = std::pin::pin!(reading);
        tokio::select! {
            () = &mut reading => true,
            Err(_) = &mut writing => {
                reading.await;
                true
            }
            else => false,
        }
    };
    soon("its end", flood).await.then_some(said)
}

#[tokio::test]
async fn a_client_that_resets_what_it_asks_is_cut_off_and_the_next_one_is_served() {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream).start().await;
    // CVE-2023-44487: a stream costs its client two small frames. POST, http, /, authority a.
    let head = [0x83, 0x86, 0x84, 0x41, 0x01, b'a'];
    let pair = |n: u32| {
        let stream = 2 * n + 1;
        [frame(HEADERS, END_HEADERS, stream, &head), frame(RST_STREAM, 0, stream, &8_u32.to_be_bytes())].concat()
    };
    let said = cut_off(&gateway, (0..1000).map(|n| (100 * n..100 * n + 100).flat_map(pair).collect())).await;
    let said = said.expect("a hundred thousand were taken");
    const ENHANCE_YOUR_CALM: [u8; 4] = [0, 0, 0, 11];
    let calm = said.windows(17).any(|frame| frame[3] == GOAWAY && frame[13..] == ENHANCE_YOUR_CALM);
    assert!(calm, "it does not say why: {said:?}");
    assert_eq!(gateway.post("/pay", "after", "{}").await.status, 201);
    assert_eq!(upstream.received().len(), 1, "what came without its body was not sent on");
}

#[tokio::test]
async fn a_head_without_end_ends_its_connection_before_it_takes_much_memory() {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream).start().await;
    // CVE-2024-27316: CONTINUATION frames without END_HEADERS, each with a long literal field.
    let field = [&[0x00, 0x05][..], b"x-pad", &[0x7f, 0x81, 0x7e], &vec![b'a'; 16_256]].concat();
    let more = (0..100_000).map(|_| frame(CONTINUATION, 0, 1, &field));
    let said = cut_off(&gateway, std::iter::once(frame(HEADERS, 0, 1, &field)).chain(more)).await;
    assert!(said.is_some(), "1.6 GB of one head were taken");
    assert_eq!(gateway.post("/pay", "after", "{}").await.status, 201);
    let peak = gateway.resident_max();
    assert!(peak < 256 << 20, "it took {peak} bytes");
}

#[tokio::test]
async fn a_body_nested_a_million_deep_is_compared_as_it_is() {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream).start().await;
    let headers = [("Idempotency-Key", "deep"), ("Content-Type", "application/json")];
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let deep = |inner: &str| {
            let depth = (1 << 20) / (open.len() + close.len()) - 8;
            request("POST", "/pay", &headers, format!("{}{inner}{}", open.repeat(depth), close.repeat(depth)))
        };
        let first = gateway.ask(deep("1")).await;
        let other = gateway.ask(deep("2")).await;
        assert_eq!(other.slug(), "key-reused", "{open}: {first:?}");
    }
    assert_eq!(upstream.effects("deep"), 1);
}

#[tokio::test]
async fn a_flood_of_fresh_keys_fills_neither_memory_nor_another_tenants_room() {
    const FLOOD: usize = 3_000;
    let upstream = Upstream::start(|_, _| vec![answer(201, &[], vec![b'x'; 4 << 10]).into()]).await;
    let config = "[listen]\ntrusted = [\"127.0.0.1/32\"]\n[store]\nmax_records = 1000\n\
                  [defaults]\nscope.tenant = \"header:X-Tenant\"\n";
    let gateway = Start::before(&upstream).config(config).start().await;
    let ask =
        |tenant: &str, key: &str| request("POST", "/pay", &[("X-Tenant", tenant), ("Idempotency-Key", key)], "{}");
    let before = gateway.resident_max();
    let floods = (0..8).map(|part| {
        let gateway = &gateway;
        async move {
            let mut client = gateway.connect().await;
            let mut refused = 0;
            for n in 0..FLOOD / 8 {
                let key = format!("flood-{part}-{n}");
                client.send(ask("flood", &key)).await;
                match client.answer().await.status {
                    201 => {}
                    429 => refused += 1,
                    other => panic!("{other}"),
                }
            }
            refused
        }
    });
    let refused: usize = join_all(floods).await.into_iter().sum();
    assert_eq!(refused, FLOOD - 500, "half of the store is theirs");
    for n in 0..100 {
        let key = format!("acme-{n}");
        assert_eq!(gateway.ask(ask("acme", &key)).await.status, 201);
    }
    let grown = gateway.resident_max().saturating_sub(before);
    assert!(grown < 64 << 20, "it took {grown} bytes");
}

#[tokio::test]
async fn an_answer_that_would_be_two_is_neither_passed_on_nor_recorded() {
    // What an upstream makes of a value that it was sent: a field that ends early and begins another one, or an answer.
    let splits = [
        "HTTP/1.1 201 Created\r\nLocation: /a\rSet-Cookie: stolen=1\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 201 Created\r\nLocation: /a\0b\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 201 Created\r\nLocation: /a\r\n folded\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 201 Created\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok!",
        "HTTP/1.1 201 Created\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ];
    let upstream = Upstream::start(move |received, _| {
        let which: usize = received.target.trim_start_matches("/split/").parse().expect("a number");
        vec![splits[which].as_bytes().to_vec().into(), Step::Close]
    })
    .await;
    let gateway = Start::before(&upstream).start().await;
    for which in 0..splits.len() {
        let (path, key) = (format!("/split/{which}"), format!("split-{which}"));
        let first = gateway.post(&path, &key, "{}").await;
        let again = gateway.post(&path, &key, "{}").await;
        assert!(first.header("set-cookie").is_none() && again.header("set-cookie").is_none(), "{which}: {first:?}");
        match first.status {
            // It has one reading after all, and that is what everybody gets.
            201 => assert!(again.is_replay() && again.essence() == first.essence(), "{which}: {first:?} {again:?}"),
            _ => assert_eq!((first.status, again.slug().as_str()), (502, "outcome-unknown"), "{which}: {first:?}"),
        }
        assert_eq!(upstream.effects(&key), 1, "{which}");
    }
}

#[tokio::test]
async fn another_method_in_a_header_changes_nothing_of_what_is_protected() {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream).start().await;
    for (n, name) in ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"].into_iter().enumerate() {
        let key = format!("k-{n}");
        let ask = request("POST", "/pay", &[("Idempotency-Key", &key), (name, "GET")], "{}");
        assert_eq!(gateway.ask(&ask).await.status, 201);
        assert!(gateway.ask(&ask).await.is_replay(), "{name}");
        assert_eq!(upstream.effects(&key), 1);
    }
    // Where an API goes by such a header, it belongs to what makes two requests the same.
    let config = "[defaults]\nfingerprint = { headers = [\"X-HTTP-Method-Override\"] }\n";
    let gateway = Start::before(&upstream).config(config).start().await;
    let ask = |method| request("POST", "/pay", &[("Idempotency-Key", "m"), ("X-HTTP-Method-Override", method)], "{}");
    assert_eq!(gateway.ask(ask("PUT")).await.status, 201);
    assert_eq!(gateway.ask(ask("DELETE")).await.slug(), "key-reused");
}

#[tokio::test]
async fn clients_that_say_nothing_do_not_keep_others_out() {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream).start().await;
    let mut silent = Vec::new();
    for n in 0..500 {
        let mut client = gateway.connect().await;
        match n % 3 {
            0 => client.send("POST /pay HTTP/1.1\r\nHost: a\r\nX-Slow: ").await,
            1 => {
                client
                    .send("POST /pay HTTP/1.1\r\nHost: a\r\nIdempotency-Key: slow\r\nContent-Length: 10\r\n\r\n{")
                    .await
            }
            _ => {}
        }
        silent.push(client);
    }
    let served = tokio::time::timeout(Duration::from_secs(20), gateway.post("/pay", "k-1", "{}")).await;
    assert_eq!(served.expect("it is served").status, 201);
    assert_eq!(upstream.effects("slow"), 0, "half a request claims nothing");
    assert_eq!(gateway.records().await.len(), 1);
}
