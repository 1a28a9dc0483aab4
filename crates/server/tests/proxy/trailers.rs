//! Trailers over HTTP/1.1: sent to whoever says `TE: trailers`, and only where the head declares them.

use super::support::{Answer, Gateway, Start, Step, Upstream, answer, chunked, request};

fn ask(path: &str, key: &str, takes_trailers: bool) -> Vec<u8> {
    let mut headers = vec![("Idempotency-Key", key), ("Content-Type", "application/json")];
    if takes_trailers {
        headers.extend([("TE", "trailers"), ("Connection", "TE")]);
    }
    request("POST", path, &headers, "{}")
}

fn trailer<'a>(answer: &'a Answer, name: &str) -> Option<&'a str> {
    answer.trailers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
}

/// Whether the head declares a trailer.
fn declares(answer: &Answer, name: &str) -> bool {
    answer.all("trailer").iter().flat_map(|line| line.split(',')).any(|declared| declared.trim() == name)
}

/// `/chunked` and `/declared` in chunks with a trailer, `/long` with its length and over what is held.
async fn upstream() -> Upstream {
    Upstream::start(|received, _| {
        let declared = [("Trailer", "X-Sum")];
        let trailers = [("X-Sum", "42"), ("X-Sum", "43")];
        let answer = match received.target.as_str() {
            "/long" => answer(200, &[], vec![b'x'; 100_000]),
            "/declared" => chunked(200, &declared, &[b"one", b"two"], &trailers),
            _ => chunked(200, &[], &[b"one", b"two"], &trailers),
        };
        vec![Step::Send(answer)]
    })
    .await
}

#[tokio::test]
async fn recorded_trailers_are_replayed_to_clients_that_take_them() {
    let upstream = upstream().await;
    let gateway = Start::before(&upstream).start().await;
    let first = gateway.ask(ask("/declared", "k-1", true)).await;
    assert_eq!((first.body.as_slice(), trailer(&first, "x-sum")), (&b"onetwo"[..], Some("42")));
    for path in ["/declared", "/chunked"] {
        let key = format!("k{path}");
        gateway.ask(ask(path, &key, true)).await;
        let again = gateway.ask(ask(path, &key, true)).await;
        assert!(again.is_replay() && again.body == b"onetwo", "{again:?}");
        let sums = again.trailers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect::<Vec<_>>();
        assert_eq!(sums, [("x-sum", "42"), ("x-sum", "43")], "{path}");
        assert_eq!((declares(&again, "x-sum") || declares(&again, "X-Sum"), again.all("trailer").len()), (true, 1));
        let plain = gateway.ask(ask(path, &key, false)).await;
        assert!(plain.is_replay() && plain.body == b"onetwo" && plain.trailers.is_empty(), "{plain:?}");
    }
    assert_eq!(upstream.received().len(), 3);
}

async fn not_confirmed(upstream: &Upstream) -> Gateway {
    Start::before(upstream)
        .config("[store]\ndeadline = \"60s\"\n[defaults]\nrecord_wait = \"100ms\"\n")
        .failpoint("store.replace:hit=1+:pause")
        .start()
        .await
}

// contract: recording-not-confirmed
#[tokio::test]
async fn a_streamed_answer_whose_record_is_not_confirmed_says_so_in_a_trailer() {
    let upstream = upstream().await;
    let gateway = not_confirmed(&upstream).await;
    for (path, bytes) in [("/chunked", 6), ("/declared", 6), ("/long", 100_000)] {
        let told = gateway.ask(ask(path, &format!("told{path}"), true)).await;
        assert_eq!((told.status, told.body.len()), (200, bytes), "{path}");
        assert_eq!(
            (told.header("idempotency-status"), trailer(&told, "idempotency-status")),
            (None, Some("unrecorded"))
        );
        assert!(declares(&told, "idempotency-status"), "{path}: {:?}", told.headers);
        assert_eq!(trailer(&told, "x-sum"), (path == "/declared").then_some("42"));
        // Whoever takes no trailers gets the answer, as it was framed.
        let untold = gateway.ask(ask(path, &format!("untold{path}"), false)).await;
        assert_eq!((untold.status, untold.body.len(), untold.trailers.len()), (200, bytes, 0), "{path}");
        assert!(!declares(&untold, "idempotency-status"));
        assert_eq!(untold.header("content-length"), (path == "/long").then_some("100000"));
    }
}
