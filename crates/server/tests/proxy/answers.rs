//! First answers: what is held, what streams, and what a client can see of the record.

use super::support::{
    Answer, Client, Gateway, Received, Start, Step, Upstream, answer, ask_h2, charged, chunked, head, post, request,
    until,
};

const LONG: usize = 100_000;

/// Answers by path: `/small`, `/long` with a length over the held limit, `/chunked`.
fn forms(received: &Received, before: usize) -> Vec<Step> {
    let body = "x".repeat(LONG);
    let bytes = match received.target.as_str() {
        "/long" => answer(202, &[], body),
        "/chunked" => chunked(200, &[], &[body.as_bytes()], &[]),
        _ => charged(before),
    };
    vec![bytes.into()]
}

/// Reads chunks of so many bytes together, of which none is the final one.
async fn read_chunks(client: &mut Client, count: usize) {
    let mut data = 0;
    while data < count {
        let line = String::from_utf8(client.take_until(b"\r\n").await.unwrap()).unwrap();
        let size = usize::from_str_radix(line.trim(), 16).unwrap();
        assert!(size > 0, "the final chunk came after {data} bytes");
        client.take(size + 2).await.unwrap();
        data += size;
    }
}

async fn paused_at(failpoint: &str, upstream: &Upstream) -> Gateway {
    Start::before(upstream).failpoint(&format!("{failpoint}:hit=1:pause")).start().await
}

/// A whole other exchange, so that whatever would have come on the first connection has had its time.
async fn something_else(gateway: &Gateway) {
    for n in 0..3 {
        assert_eq!(gateway.post("/small", &format!("else-{n}"), "{}").await.status, 201);
    }
}

// contract: first
#[tokio::test]
async fn nothing_of_a_short_answer_leaves_before_its_record_is_safe() {
    let upstream = Upstream::start(forms).await;
    let gateway = paused_at("complete.begin", &upstream).await;
    let mut client = gateway.connect().await;
    client.send(post("/small", "k-1", "{}")).await;
    upstream.reached("k-1", 1).await;
    something_else(&gateway).await;
    assert!(!client.has_more(), "bytes came before the record");
}

// contract: first
#[tokio::test]
async fn the_last_byte_of_a_long_answer_waits_for_its_record() {
    let upstream = Upstream::start(forms).await;
    let gateway = paused_at("complete.begin", &upstream).await;
    let mut client = gateway.connect().await;
    client.send(post("/long", "k-1", "{}")).await;
    let head = client.read_head().await.unwrap();
    assert_eq!(head.status, 202);
    assert!(head.headers.iter().any(|(name, _)| name == "idempotency-expires"), "it will be recorded");
    assert!(head.headers.contains(&("content-length".into(), LONG.to_string())), "{:?}", head.headers);
    client.take(LONG - 1).await.unwrap();
    something_else(&gateway).await;
    assert!(!client.has_more(), "the last byte came before the record");
}

// contract: first
#[tokio::test]
async fn the_final_chunk_waits_for_the_record() {
    let upstream = Upstream::start(forms).await;
    let gateway = paused_at("complete.begin", &upstream).await;
    let mut client = gateway.connect().await;
    client.send(post("/chunked", "k-1", "{}")).await;
    client.read_head().await.unwrap();
    read_chunks(&mut client, LONG).await;
    something_else(&gateway).await;
    assert!(!client.has_more(), "the end came before the record");
}

#[tokio::test]
async fn once_the_record_is_safe_repeats_are_answered_though_the_first_client_still_waits() {
    let upstream = Upstream::start(forms).await;
    let gateway = paused_at("complete.end", &upstream).await;
    let mut client = gateway.connect().await;
    client.send(post("/chunked", "k-1", "{}")).await;
    client.read_head().await.unwrap();
    until("the record", async || gateway.records().await.iter().any(|record| record["state"] == "completed")).await;
    let replay = gateway.post("/chunked", "k-1", "{}").await;
    assert!(replay.is_replay(), "{replay:?}");
    assert_eq!((replay.status, replay.body.len(), upstream.effects("k-1")), (200, LONG, 1));
    read_chunks(&mut client, LONG).await;
    assert!(!client.has_more(), "its failpoint holds the end back");
}

// contract: recorded-without-its-body
#[tokio::test]
async fn an_answer_over_the_limit_or_an_event_stream_is_never_run_again_nor_shown() {
    let upstream = Upstream::start(|received, _| {
        vec![
            match received.target.as_str() {
                "/3mb" => answer(200, &[], vec![7; 3 << 20]),
                "/3mb-chunked" => chunked(202, &[], &[&[7; 3 << 20]], &[]),
                "/events" => answer(200, &[("Content-Type", "text/event-stream")], "data: 1\n\n"),
                "/just" => answer(200, &[], vec![7; 1 << 20]),
                _ => answer(200, &[], vec![7; (1 << 20) + 1]),
            }
            .into(),
        ]
    })
    .await;
    let gateway = Start::before(&upstream).start().await;
    for (path, status, length, kept) in [
        ("/3mb", 200, 3 << 20, false),
        ("/3mb-chunked", 202, 3 << 20, false),
        ("/events", 200, 9, false),
        ("/just", 200, 1 << 20, true),
        ("/over", 200, (1 << 20) + 1, false),
    ] {
        let first = gateway.post(path, path, "{}").await;
        assert_eq!((first.status, first.body.len()), (status, length), "{path}");
        assert!(first.header("idempotency-expires").is_some(), "{path}: the fact is recorded");
        let again = gateway.post(path, path, "{}").await;
        assert_eq!(upstream.effects(path), 1, "{path}");
        if kept {
            assert!(again.is_replay() && again.body == first.body, "{path}: {}", again.status);
        } else {
            assert_eq!((again.status, again.slug().as_str()), (409, "response-not-kept"), "{path}");
            assert_eq!(again.json()["recorded_status"], status, "{path}");
            assert_eq!(again.json()["retryable"], false, "{path}");
        }
    }
}

#[tokio::test]
async fn interim_answers_of_the_upstream_are_dropped_and_continue_is_answered_here() {
    let upstream = Upstream::start(|_, before| {
        let mut bytes = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n".to_vec();
        bytes.extend(charged(before));
        vec![bytes.into()]
    })
    .await;
    let gateway = Start::before(&upstream).start().await;
    let mut client = gateway.connect().await;
    let headers = [("Idempotency-Key", "k-1"), ("Expect", "100-continue")];
    let whole = request("POST", "/x", &headers, "{}");
    let body_at = whole.len() - 2;
    client.send(&whole[..body_at]).await;
    assert_eq!(client.take_until(b"\r\n\r\n").await.unwrap(), b"HTTP/1.1 100 Continue\r\n\r\n");
    client.send(&whole[body_at..]).await;
    let bytes = client.take_until(b"{\"charge\":0}").await.unwrap();
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.starts_with("HTTP/1.1 201") && !text.contains("103"), "{text}");
    assert_eq!(upstream.last().header("expect"), None);
}

#[tokio::test]
async fn what_only_onceward_says_is_taken_out_of_the_upstreams_answers() {
    let own = [
        ("Idempotent-Replayed", "true"),
        ("Idempotency-Expires", "never"),
        ("Idempotency-Status", "bypassed"),
        ("Idempotency-Key-Source", "derived"),
        ("Idempotency-Outcome", "record"),
    ];
    let trailers = [("Idempotent-Replayed", "true"), ("Idempotency-Status", "degraded"), ("X-Sum", "7")];
    let upstream = Upstream::start(move |received, before| {
        vec![
            match received.target.as_str() {
                "/trailers" => {
                    let mut headers = own.to_vec();
                    headers.push(("Trailer", "Idempotent-Replayed, Idempotency-Status, X-Sum"));
                    chunked(200, &headers, &[b"body"], &trailers)
                }
                _ => answer(200, &own, format!("{before}")),
            }
            .into(),
        ]
    })
    .await;
    let gateway = Start::before(&upstream).start().await;
    let is_clean = |answer: &Answer| {
        for (name, value) in own {
            let name = name.to_ascii_lowercase();
            assert!(answer.header(&name) != Some(value), "{name} of the upstream in {answer:?}");
            assert!(!answer.trailers.iter().any(|(found, _)| *found == name), "{name} in the trailers of {answer:?}");
        }
    };
    is_clean(&gateway.post("/x", "k-1", "{}").await);
    is_clean(&gateway.ask(request("POST", "/without-a-key", &[], "{}")).await);
    let with_te = request("POST", "/trailers", &[("Idempotency-Key", "k-2"), ("TE", "trailers")], "{}");
    let first = gateway.ask(&with_te).await;
    is_clean(&first);
    let replay = gateway.ask(&with_te).await;
    assert_eq!(replay.trailers, first.trailers);
    assert_eq!(replay.trailers, [("x-sum".to_owned(), "7".to_owned())]);
}

#[tokio::test]
async fn a_broken_upload_claims_nothing() {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream).start().await;
    let mut client = gateway.connect().await;
    let whole = post("/x", "k-1", "{\"amount\":1}");
    client.send(&whole[..whole.len() - 3]).await;
    drop(client);
    // Its whole repetition runs as the first.
    assert_eq!(gateway.post("/x", "k-1", "{\"amount\":1}").await.status, 201);
    assert_eq!(upstream.effects("k-1"), 1);
    assert_eq!(gateway.records().await.len(), 1);
}

#[tokio::test]
async fn a_client_of_http2_gets_what_one_of_http1_gets() {
    let upstream = Upstream::start(forms).await;
    let gateway = Start::before(&upstream).start().await;
    for path in ["/small", "/long", "/chunked"] {
        let headers = [("idempotency-key", path), ("content-type", "application/json")];
        let first = ask_h2(gateway.proxy, path, &headers, "{}").await;
        assert!(!first.is_replay() && first.header("idempotency-expires").is_some(), "{first:?}");
        let by_one = gateway.post(path, path, "{}").await;
        let by_two = ask_h2(gateway.proxy, path, &headers, "{}").await;
        assert!(by_one.is_replay() && by_two.is_replay());
        assert_eq!(by_one.essence(), first.essence());
        assert_eq!(by_two.essence(), first.essence());
        assert_eq!(upstream.effects(path), 1);
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_does_not_hold_the_record_up() {
    let upstream = Upstream::start(|_, _| vec![answer(200, &[], vec![b'x'; 900_000]).into()]).await;
    let gateway = Start::before(&upstream).start().await;
    let mut idle = gateway.connect().await;
    idle.send(post("/x", "k-1", "{}")).await;
    upstream.reached("k-1", 1).await;
    let replay = gateway.post("/x", "k-1", "{}").await;
    assert!(replay.is_replay());
    assert_eq!((replay.body.len(), upstream.effects("k-1")), (900_000, 1));
    let late = idle.answer().await;
    assert_eq!(late.body, replay.body);
}

#[tokio::test]
async fn connections_serve_one_request_after_another() {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream).start().await;
    let mut client = gateway.connect().await;
    for key in ["a", "b", "a"] {
        client.send(post("/x", key, "{}")).await;
        let answer = client.answer().await;
        assert_eq!((answer.status, answer.is_replay()), (201, key == "a" && upstream.received().len() == 2));
    }
    // Pipelined: both are answered, in order.
    client.send([post("/x", "c", "{}"), post("/x", "b", "{}")].concat()).await;
    assert!(!client.answer().await.is_replay());
    assert!(client.answer().await.is_replay());
    assert_eq!(upstream.received().len(), 3);
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_broken_off_for_the_client_too() {
    let upstream = Upstream::start(|received, _| match received.target.as_str() {
        "/long" => vec![[head(200, &[("Content-Length", "100000")]), vec![b'x'; 70_000]].concat().into(), Step::Close],
        "/chunked" => {
            vec![
                [head(200, &[("Transfer-Encoding", "chunked")]), b"5\r\nhello\r\n".to_vec()].concat().into(),
                Step::Close,
            ]
        }
        _ => vec![[head(200, &[("Content-Length", "10")]), b"hello".to_vec()].concat().into(), Step::Close],
    })
    .await;
    let gateway = Start::before(&upstream).start().await;
    let held = gateway.post("/short", "k-0", "{}").await;
    assert_eq!((held.status, held.slug().as_str()), (502, "upstream-failed"));
    for (path, key) in [("/long", "k-1"), ("/chunked", "k-2")] {
        let mut client = Client::connect(gateway.proxy).await;
        client.send(post(path, key, "{}")).await;
        let broken = client.try_answer().await;
        assert!(broken.is_err(), "{path} looks complete: {broken:?}");
    }
    for (path, key) in [("/short", "k-0"), ("/long", "k-1"), ("/chunked", "k-2")] {
        let again = gateway.post(path, key, "{}").await;
        assert_eq!((again.status, again.slug().as_str()), (409, "outcome-unknown"), "{path}");
        assert_eq!(upstream.effects(key), 1, "{path}");
    }
}

#[tokio::test]
async fn the_log_has_the_status_that_the_client_was_given_also_of_an_answer_that_streams() {
    let upstream = Upstream::start(forms).await;
    let gateway = Start::before(&upstream).start().await;
    for (path, status) in [("/small", 201), ("/long", 202)] {
        assert_eq!(gateway.post(path, &path[1..], "{}").await.status, status);
        gateway.says(&format!("status={status}")).await;
    }
}
