//! The corpus of `tests/framing/`: raw bytes into the real transport, judged by what a recording upstream got.
//!
//! A case says, above its line `---`, `answers:` the statuses in order and then `open` or `close`, and one `upstream:`
//! for each request that must have arrived there, as `METHOD TARGET BODY`. `cut-allowed: yes` is for bodies that are
//! streamed before their fault shows. Below it are the bytes: line ends of the file count for nothing, `\r`, `\n`, `\t`,
//! `\0`, `\\` and `\xHH` for what they say, `\*N(TEXT)` for TEXT N times.
//!
//! `open` is proved by a further request on the same connection, which must be answered and arrive as itself. Each case
//! is sent whole, and again cut in two at every place (at most 200, evenly).

use std::path::Path;

use crate::support::{Answer, Proxy, Recorder};

#[derive(Debug)]
struct Case {
    name: String,
    statuses: Vec<u16>,
    open: bool,
    upstream: Vec<String>,
    cut_allowed: bool,
    raw: Vec<u8>,
}

impl Case {
    fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap();
        let (top, raw) = text.split_once("\n---\n").expect("a line ---");
        let mut case = Self {
            name: path.file_name().unwrap().to_string_lossy().into_owned(),
            statuses: Vec::new(),
            open: false,
            upstream: Vec::new(),
            cut_allowed: false,
            raw: unescape(raw),
        };
        for line in top.lines().filter(|line| !line.starts_with('#')) {
            let (word, rest) = line.split_once(':').expect("word: rest");
            match word {
                "answers" => {
                    let mut words: Vec<&str> = rest.split_whitespace().collect();
                    case.open = match words.pop() {
                        Some("open") => true,
                        Some("close") => false,
                        other => panic!("{}: open or close, not {other:?}", case.name),
                    };
                    case.statuses = words.iter().map(|word| word.parse().unwrap()).collect();
                }
                "upstream" => case.upstream.push(rest.trim().to_owned()),
                "cut-allowed" => case.cut_allowed = rest.trim() == "yes",
                other => panic!("{}: unknown word {other}", case.name),
            }
        }
        case
    }
}

fn unescape(text: &str) -> Vec<u8> {
    let mut raw = Vec::new();
    let mut rest = text.chars();
    while let Some(next) = rest.next() {
        match next {
            '\n' => {}
            '\\' => match rest.next().expect("an escape") {
                'r' => raw.push(b'\r'),
                'n' => raw.push(b'\n'),
                't' => raw.push(b'\t'),
                '0' => raw.push(0),
                '\\' => raw.push(b'\\'),
                'x' => {
                    let digits: String = rest.by_ref().take(2).collect();
                    raw.push(u8::from_str_radix(&digits, 16).unwrap());
                }
                '*' => {
                    let times: String = rest.by_ref().take_while(|next| *next != '(').collect();
                    let text: String = rest.by_ref().take_while(|next| *next != ')').collect();
                    let piece = unescape(&text);
                    for _ in 0..times.parse::<usize>().unwrap() {
                        raw.extend_from_slice(&piece);
                    }
                }
                other => panic!("unknown escape {other:?}"),
            },
            other => raw.extend_from_slice(other.to_string().as_bytes()),
        }
    }
    raw
}

/// The status of an answer; one that refuses says why. Behind another answer, hyper's own refusal may stay bare: the
/// socket cannot tell it from the end of a body.
fn said(answer: &Answer, is_first: bool) -> Result<u16, String> {
    if !is_first && answer.status == 400 && answer.body.is_empty() && answer.field("connection") == ["close"] {
        return Ok(answer.status);
    }
    let problem = || serde_json::from_slice::<serde_json::Value>(&answer.body).unwrap_or_default();
    if answer.status >= 400 && problem()["status"] != answer.status {
        return Err(format!("a refusal without a problem: {answer:?}"));
    }
    if answer.status >= 200 && answer.field("date").len() != 1 {
        return Err(format!("an answer without a date: {answer:?}"));
    }
    Ok(answer.status)
}

/// Sends `pieces` one after the other on a new connection, and says what is wrong with what came of it.
async fn judge(case: &Case, pieces: &[&[u8]], proxy: &Proxy, recorder: &Recorder) -> Result<(), String> {
    let (before, cut_before) = recorder.with(|log| (log.requests.len(), log.cut));
    let mut client = proxy.connect().await;
    for piece in pieces {
        client.send(piece).await;
        // Lets the proxy read the pieces apart; where it does not, the case is only less sharp.
        tokio::task::yield_now().await;
    }
    let mut statuses = Vec::new();
    let mut expected: Vec<String> = case.upstream.clone();
    if case.open {
        while statuses.len() < case.statuses.len() {
            match client.answer().await {
                Some(answer) => statuses.push(said(&answer, statuses.is_empty())?),
                None => break,
            }
        }
        if statuses == case.statuses {
            client.send("GET /probe HTTP/1.1\r\nHost: probe\r\n\r\n").await;
            expected.push("GET /probe".to_owned());
            match client.answer().await {
                Some(answer) if answer.status == 200 && answer.body == b"ok" => {}
                other => return Err(format!("the connection is of no use after it: {other:?}")),
            }
        }
    } else {
        while let Some(answer) = client.answer().await {
            statuses.push(said(&answer, statuses.is_empty())?);
        }
    }
    if statuses != case.statuses {
        return Err(format!("answers {statuses:?}"));
    }
    recorder.with(|log| {
        if !log.violations.is_empty() {
            return Err(format!("the upstream got {:?}", log.violations));
        }
        let arrived: Vec<String> = log.requests[before..]
            .iter()
            .map(|received| {
                let line = received.head.lines().next().unwrap_or_default();
                let line = line.strip_suffix(" HTTP/1.1").unwrap_or("(not 1.1)");
                let body = String::from_utf8_lossy(&received.body);
                format!("{line} {body}").trim_end().to_owned()
            })
            .collect();
        if arrived != expected {
            return Err(format!("the upstream got {arrived:?}, not {expected:?}"));
        }
        if log.cut > cut_before && !case.cut_allowed {
            return Err("the upstream got part of a request".to_owned());
        }
        Ok(())
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_case_of_the_corpus_ends_as_it_says_however_it_is_cut() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/framing");
    let mut cases: Vec<Case> =
        std::fs::read_dir(folder).unwrap().map(|entry| Case::read(&entry.unwrap().path())).collect();
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    assert!(cases.len() >= 60, "the corpus is there: {} cases", cases.len());

    let mut failures = Vec::new();
    for case in &cases {
        // Of its own: what a case leaves behind must not count for the next.
        let recorder = Recorder::start().await;
        let proxy = Proxy::before(recorder.address).await;
        if let Err(why) = judge(case, &[&case.raw], &proxy, &recorder).await {
            failures.push(format!("{}: {why}", case.name));
            continue;
        }
        let step = case.raw.len().div_ceil(200).max(1);
        for at in (1..case.raw.len()).step_by(step) {
            let (left, right) = case.raw.split_at(at);
            if let Err(why) = judge(case, &[left, right], &proxy, &recorder).await {
                failures.push(format!("{}, cut at {at}: {why}", case.name));
                break;
            }
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}
