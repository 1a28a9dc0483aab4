//! Request bodies that are the same though their bytes are not, and what the largest of them cost.

use std::io::Write as _;

use super::support::{Answer, Gateway, Start, Upstream, metric, request};

const CONTENT: &str = "{\"charge\":1, \"text\":\"text text text text text text\"}";

/// [`CONTENT`], by the reference encoder of brotli.
const BROTLI: [u8; 51] = [
    0x1b, 0x33, 0x00, 0xf8, 0x9d, 0x07, 0xb6, 0x2d, 0x72, 0xfb, 0xc6, 0x22, 0x98, 0x48, 0xfa, 0x31, 0xab, 0x41, 0x44,
    0xe8, 0xf6, 0x94, 0x4e, 0x5f, 0xb2, 0xc4, 0x94, 0x95, 0x08, 0x1e, 0x6c, 0xc0, 0x01, 0x73, 0x1a, 0xa7, 0xb8, 0xda,
    0x6d, 0x40, 0x02, 0x2f, 0xb8, 0xa2, 0x5d, 0x97, 0x60, 0x4f, 0x0e, 0x40, 0x06,
];

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut coder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    coder.write_all(content).unwrap();
    coder.finish().unwrap()
}

fn zlib(content: &[u8]) -> Vec<u8> {
    let mut coder = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::best());
    coder.write_all(content).unwrap();
    coder.finish().unwrap()
}

async fn send(gateway: &Gateway, path: &str, key: &str, coding: &str, body: impl AsRef<[u8]>) -> Answer {
    let mut headers = vec![("Idempotency-Key", key), ("Content-Type", "application/json")];
    if !coding.is_empty() {
        headers.push(("Content-Encoding", coding));
    }
    gateway.ask(request("POST", path, &headers, body)).await
}

const DECODE: &str = "[[route]]\nname = \"plain\"\nmatch = { path = \"/plain\" }\nfingerprint = { decode = true }\n";

#[tokio::test]
async fn the_same_content_under_two_codings_is_the_same_request_where_a_route_decodes() {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream).config(DECODE).start().await;
    let zstd = zstd::encode_all(CONTENT.as_bytes(), 1).unwrap();
    let codings = [
        ("", CONTENT.as_bytes().to_vec()),
        ("identity", b"{\"text\":\"text text text text text text\",\"charge\":1}".to_vec()),
        ("gzip", gzip(CONTENT.as_bytes())),
        ("X-GZIP", gzip(CONTENT.as_bytes())),
        ("deflate", zlib(CONTENT.as_bytes())),
        ("br", BROTLI.to_vec()),
        ("zstd", zstd.clone()),
        ("zstd, gzip", gzip(&zstd)),
    ];
    for (n, (coding, body)) in codings.iter().enumerate() {
        let key = format!("k-{n}");
        assert_eq!(send(&gateway, "/plain", &key, coding, body).await.status, 201, "{coding}");
        let received = upstream.last();
        assert_eq!(received.body, *body, "the upstream gets {coding} as it was sent");
        assert_eq!(received.header("content-encoding").unwrap_or_default(), *coding);
        for (other, body) in &codings {
            assert!(send(&gateway, "/plain", &key, other, body).await.is_replay(), "{coding}, then {other}");
        }
    }
    assert_eq!(upstream.received().len(), codings.len());
    let another = send(&gateway, "/plain", "k-2", "gzip", gzip(b"{\"charge\":2}")).await;
    assert_eq!((another.status, another.slug().as_str()), (422, "key-reused"));
    assert_eq!(another.json()["fields"][0], "/charge", "what differs is named by its content");
    assert_eq!(metric(&gateway.metrics().await, "onceward_fingerprint_undecoded_total"), 0.0);

    // Where no route asks for it, bytes are bytes.
    assert_eq!(send(&gateway, "/bytes", "k-1", "gzip", gzip(CONTENT.as_bytes())).await.status, 201);
    assert_eq!(send(&gateway, "/bytes", "k-1", "zstd", &zstd).await.slug(), "key-reused");
}

// contract: limits.decode_ratio
#[tokio::test]
async fn what_does_not_decode_within_bounds_is_compared_as_sent_and_a_bomb_costs_little() {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream).config(DECODE).start().await;
    let before = gateway.resident_max();
    // Ninety members of ten MiB each, in less than one MiB.
    let bomb = gzip(&vec![0; 10 << 20]).repeat(90);
    assert!((500_000..1 << 20).contains(&bomb.len()), "{}", bomb.len());
    // A frame whose header asks for a window of 2 GiB, and brotli's extension to large windows.
    let window = [&[0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xa8][..], &[0; 20]].concat();
    let large = [&[0x11, 0x1e][..], &[0; 20]].concat();
    let bodies: [(&str, Vec<u8>); 6] = [
        ("gzip", bomb),
        ("gzip", b"not gzip".to_vec()),
        ("zstd", window),
        ("br", large),
        ("unheard-of", vec![1, 2, 3]),
        ("gzip, gzip, gzip, gzip, gzip", gzip(&gzip(&gzip(&gzip(&gzip(b"{}")))))),
    ];
    for (n, (coding, body)) in bodies.iter().enumerate() {
        let key = format!("k-{n}");
        assert_eq!(send(&gateway, "/plain", &key, coding, body).await.status, 201, "{coding}");
        assert_eq!(upstream.last().body, *body);
        assert!(send(&gateway, "/plain", &key, coding, body).await.is_replay(), "{coding}");
        let other = send(&gateway, "/plain", &key, coding, [body.as_slice(), &[0]].concat()).await;
        assert_eq!(other.slug(), "key-reused", "{coding}");
    }
    let counted = metric(&gateway.metrics().await, "onceward_fingerprint_undecoded_total");
    assert!(counted >= 18.0, "{counted}");
    let grown = gateway.resident_max() - before;
    assert!(grown < 64 << 20, "{grown} bytes more");
}

/// An upload, its parts between this boundary.
fn form(boundary: &str, amount: &str, file: &str) -> Vec<u8> {
    let content_type = format!("multipart/form-data; boundary={boundary}");
    let body = format!(
        "--{boundary}\r\nContent-Disposition: form-data; name=\"amount\"\r\n\r\n{amount}\r\n--{boundary}\r\n\
         Content-Disposition: form-data; name=\"file\"; filename=\"a.bin\"\r\n\
         Content-Type: application/octet-stream\r\n\r\n{file}\r\n--{boundary}--\r\n"
    );
    request("POST", "/upload", &[("Idempotency-Key", "k-1"), ("Content-Type", content_type.as_str())], body)
}

#[tokio::test]
async fn multipart_counts_by_its_parts_and_not_by_its_boundary() {
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream).start().await;
    assert_eq!(gateway.ask(form("one", "5", "bytes")).await.status, 201);
    assert!(gateway.ask(form("----WebKitFormBoundary7MA4YWxkTrZu0gW", "5", "bytes")).await.is_replay());
    for other in [form("one", "6", "bytes"), form("two", "5", "other bytes")] {
        assert_eq!(gateway.ask(other).await.slug(), "key-reused");
    }
    assert_eq!(upstream.received().len(), 1);
}

/// Goal: bodies that are brought into canonical form share a budget, whoever sends them at once. Method: 64 callers
/// send 10 MiB each under one key, 640 MiB in all; the process must never hold half of that.
#[tokio::test]
async fn sixty_four_callers_with_ten_mebibytes_each_share_one_budget() {
    const CALLERS: usize = 64;
    let upstream = Upstream::charging().await;
    let gateway = Start::before(&upstream).config("[limits]\ncanonical_body = \"16MiB\"\n").start().await;
    let file = "x".repeat((10 << 20) - 1024);
    let [one, other] = ["one", "other"].map(|boundary| bytes::Bytes::from(form(boundary, "5", &file)));
    let mut callers = tokio::task::JoinSet::new();
    for n in 0..CALLERS {
        let request = if n % 2 == 0 { one.clone() } else { other.clone() };
        let address = gateway.proxy;
        callers.spawn(async move {
            let mut client = super::support::Client::connect(address).await;
            client.send(&request).await;
            client.answer().await
        });
    }
    let answers = callers.join_all().await;
    assert!(answers.iter().all(|answer| answer.status == 201), "{answers:?}");
    assert_eq!(
        answers.iter().filter(|answer| answer.is_replay()).count(),
        CALLERS - 1,
        "a boundary does not count: one request"
    );
    assert_eq!(upstream.received().len(), 1);
    let resident = gateway.resident_max();
    assert!(resident < 320 << 20, "{} MiB", resident >> 20);
}
