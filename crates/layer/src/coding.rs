//! Content codings: taken off recorded answers for a repeat that does not take them, and off requests for their
//! fingerprint.
//!
//! RFC 9110, 8.4 and 12.5.3. A record holds the first answer as it was sent; whoever repeats with another
//! `Accept-Encoding` gets the same content, decoded where it must be. What cannot be decoded within its bounds is
//! replayed as it was recorded.

use std::io::Read;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use onceward_core::outcome::{Field, Outcome};

/// A body decodes to at most so many times its size, and to at most [`DECODED_BYTES_MAX`].
const RATIO_MAX: usize = 100;
const DECODED_BYTES_MAX: usize = 16 << 20;
/// More codings than this on one body are nobody's.
const CODINGS_MAX: usize = 4;
/// What a decoder may look back on, and so holds in memory: brotli's largest window. Zstandard is held to the 8 MiB of
/// RFC 9659, brotli's extension to larger windows is refused.
pub(crate) const WINDOW_BYTES_MAX: usize = 16 << 20;
const ZSTD_WINDOW_LOG_MAX: u32 = 23;

const GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
const GRPC_ACCEPT_ENCODING: HeaderName = HeaderName::from_static("grpc-accept-encoding");

/// The `Accept-Encoding` of a request, as one list; `None` where there is none, which takes any coding.
pub(crate) fn accepted(headers: &HeaderMap) -> Option<String> {
    list(headers, &header::ACCEPT_ENCODING)
}

/// The same for the messages of a gRPC call, where none is taken that is not named.
pub(crate) fn grpc_accepted(headers: &HeaderMap) -> Option<String> {
    Some(list(headers, &GRPC_ACCEPT_ENCODING).unwrap_or_default())
}

fn list(headers: &HeaderMap, name: &HeaderName) -> Option<String> {
    let lines: Vec<&str> = headers.get_all(name).iter().map(text).collect();
    (!lines.is_empty()).then(|| lines.join(","))
}

/// `outcome` as whoever takes `accepted` can read it.
pub(crate) fn readable(outcome: Outcome, accepted: Option<&str>) -> Outcome {
    let Some(accepted) = accepted else { return outcome };
    let codings = codings_of(&outcome, "content-encoding");
    if outcome.body.is_empty() || codings.iter().all(|coding| takes(accepted, coding)) {
        return outcome;
    }
    let Some(body) = decoded(&codings, &outcome.body, RATIO_MAX, DECODED_BYTES_MAX) else { return outcome };
    let is_coding = |field: &Field| field.name.as_ref() == b"content-encoding";
    let headers = outcome.headers.into_iter().filter(|field| !is_coding(field)).collect();
    Outcome { body, headers, ..outcome }
}

/// `outcome` of a gRPC call as whoever takes `accepted` can read it: each of its messages says whether it is coded.
pub(crate) fn readable_messages(outcome: Outcome, accepted: Option<&str>) -> Outcome {
    let codings = codings_of(&outcome, GRPC_ENCODING.as_str());
    let [coding] = codings.as_slice() else { return outcome };
    if outcome.body.is_empty() || takes(accepted.unwrap_or_default(), coding) {
        return outcome;
    }
    let Some(body) = decode_messages(coding, &outcome.body) else { return outcome };
    let is_coding = |field: &Field| field.name.as_ref() == GRPC_ENCODING.as_str().as_bytes();
    let headers = outcome.headers.into_iter().filter(|field| !is_coding(field)).collect();
    Outcome { body, headers, ..outcome }
}

fn decode_messages(coding: &str, mut rest: &[u8]) -> Option<Bytes> {
    let mut decoded = Vec::new();
    while let Some((flag, after)) = rest.split_first() {
        let (length, after) = after.split_first_chunk()?;
        let (message, after) = after.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)?;
        rest = after;
        let message = match flag {
            0 => Bytes::copy_from_slice(message),
            1 => {
                let bytes_max = message.len().saturating_mul(RATIO_MAX).min(DECODED_BYTES_MAX);
                decode(coding, message, bytes_max)?
            }
            _ => return None,
        };
        decoded.push(0);
        decoded.extend_from_slice(&u32::try_from(message.len()).ok()?.to_be_bytes());
        decoded.extend_from_slice(&message);
        if decoded.len() > DECODED_BYTES_MAX {
            return None;
        }
    }
    Some(decoded.into())
}

fn codings_of(outcome: &Outcome, name: &str) -> Vec<String> {
    let is_coding = |field: &&Field| field.name.as_ref() == name.as_bytes();
    listed(outcome.headers.iter().filter(is_coding).map(|field| field.value.as_ref()))
}

/// The codings that the lines of a `Content-Encoding` list, in the order they were applied.
pub(crate) fn listed<'h>(lines: impl Iterator<Item = &'h [u8]>) -> Vec<String> {
    lines
        .flat_map(|line| line.split(|byte| *byte == b','))
        .map(|coding| String::from_utf8_lossy(coding).trim().to_ascii_lowercase())
        .filter(|coding| !coding.is_empty() && coding != "identity")
        .collect()
}

/// `body` without these codings, where that makes it at most `ratio` times as long, and at most `bytes_max`.
pub(crate) fn decoded(codings: &[String], body: &[u8], ratio: usize, bytes_max: usize) -> Option<Bytes> {
    if codings.len() > CODINGS_MAX {
        return None;
    }
    let bytes_max = body.len().saturating_mul(ratio).min(bytes_max);
    // Applied in the order they are listed, so taken off from the last.
    let (last, before) = codings.split_last()?;
    let mut plain = decode(last, body, bytes_max)?;
    for coding in before.iter().rev() {
        plain = decode(coding, &plain, bytes_max)?;
    }
    Some(plain)
}

/// Whether a list takes a coding: by its own weight, else by that of `*`.
fn takes(accepted: &str, coding: &str) -> bool {
    let mut any = false;
    for item in accepted.split(',') {
        let mut parts = item.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let weight = parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        let is_taken = weight.and_then(|weight| weight.parse::<f32>().ok()).is_none_or(|weight| weight > 0.0);
        if name.eq_ignore_ascii_case(coding) || name.eq_ignore_ascii_case(alias(coding)) {
            return is_taken;
        }
        if name == "*" {
            any = is_taken;
        }
    }
    any
}

fn alias(coding: &str) -> &str {
    match coding {
        "gzip" => "x-gzip",
        "x-gzip" => "gzip",
        other => other,
    }
}

fn decode(coding: &str, body: &[u8], bytes_max: usize) -> Option<Bytes> {
    match coding {
        "gzip" | "x-gzip" => read_all(flate2::read::MultiGzDecoder::new(body), bytes_max),
        "deflate" => read_all(flate2::read::ZlibDecoder::new(body), bytes_max),
        "br" if !has_large_window(body) => read_all(brotli_decompressor::Decompressor::new(body, 4096), bytes_max),
        "zstd" => {
            let mut decoder = zstd::Decoder::new(body).ok()?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).ok()?;
            read_all(decoder, bytes_max)
        }
        _ => None,
    }
}

/// Whether a brotli stream begins as only one of the extension to large windows does.
fn has_large_window(body: &[u8]) -> bool {
    body.first().is_some_and(|first| first & 0x7f == 0x11)
}

fn read_all(from: impl Read, bytes_max: usize) -> Option<Bytes> {
    let mut decoded = Vec::new();
    from.take(bytes_max as u64 + 1).read_to_end(&mut decoded).ok()?;
    (decoded.len() <= bytes_max).then(|| decoded.into())
}

fn text(value: &HeaderValue) -> &str {
    value.to_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const CONTENT: &[u8] = b"{\"charge\":1, \"text\":\"text text text text text text\"}";

    const BROTLI: [u8; 51] = [
        0x1b, 0x33, 0x00, 0xf8, 0x9d, 0x07, 0xb6, 0x2d, 0x72, 0xfb, 0xc6, 0x22, 0x98, 0x48, 0xfa, 0x31, 0xab, 0x41,
        0x44, 0xe8, 0xf6, 0x94, 0x4e, 0x5f, 0xb2, 0xc4, 0x94, 0x95, 0x08, 0x1e, 0x6c, 0xc0, 0x01, 0x73, 0x1a, 0xa7,
        0xb8, 0xda, 0x6d, 0x40, 0x02, 0x2f, 0xb8, 0xa2, 0x5d, 0x97, 0x60, 0x4f, 0x0e, 0x40, 0x06,
    ];

    fn gzip(content: &[u8]) -> Vec<u8> {
        let mut coder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        coder.write_all(content).unwrap();
        coder.finish().unwrap()
    }

    fn coded(coding: &'static str, body: Vec<u8>) -> Outcome {
        let header = |name: &'static str, value: &'static str| Field { name: name.into(), value: value.into() };
        let headers = vec![header("content-type", "application/json"), header("content-encoding", coding)];
        Outcome { status: 200, headers, body: body.into(), ..Outcome::default() }
    }

    #[test]
    fn a_coding_is_taken_off_only_for_whoever_does_not_take_it() {
        let recorded = coded("gzip", gzip(CONTENT));
        for accepted in [None, Some("gzip"), Some("br, x-gzip;q=0.5"), Some("*"), Some("GZIP")] {
            assert_eq!(readable(recorded.clone(), accepted), recorded, "{accepted:?}");
        }
        for accepted in ["identity", "br", "gzip;q=0", "*;q=0", "gzip;q=0, *", ""] {
            let read = readable(recorded.clone(), Some(accepted));
            assert_eq!(read.body, CONTENT, "{accepted:?}");
            assert_eq!(read.headers.len(), 1, "{accepted:?}");
        }
    }

    #[test]
    fn every_coding_in_use_is_decoded_and_several_from_the_last() {
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        zlib.write_all(CONTENT).unwrap();
        let zstd = zstd::encode_all(CONTENT, 1).unwrap();
        // `printf '{"charge":1, …}' | brotli`, by the reference encoder.
        let br = BROTLI.to_vec();
        for (coding, body) in [
            ("deflate", zlib.finish().unwrap()),
            ("br", br),
            ("zstd", zstd.clone()),
            ("zstd, gzip", gzip(&zstd)),
            ("identity", CONTENT.to_vec()),
        ] {
            assert_eq!(readable(coded(coding, body), Some("identity")).body, CONTENT, "{coding}");
        }
    }

    #[test]
    fn messages_of_grpc_are_decoded_one_by_one_for_whoever_does_not_name_their_coding() {
        let message = |flag: u8, content: &[u8]| {
            let length = u32::try_from(content.len()).unwrap().to_be_bytes();
            [[flag].as_slice(), length.as_slice(), content].concat()
        };
        let grpc = |coding: &'static str, body: Vec<u8>| {
            let headers = vec![Field { name: "grpc-encoding".into(), value: coding.into() }];
            Outcome { status: 200, headers, body: body.into(), ..Outcome::default() }
        };
        let recorded = grpc("gzip", [message(1, &gzip(CONTENT)), message(0, b"plain")].concat());
        for accepted in ["gzip", "identity, gzip", "deflate,gzip"] {
            assert_eq!(readable_messages(recorded.clone(), Some(accepted)), recorded, "{accepted}");
        }
        let read = readable_messages(recorded.clone(), Some(""));
        assert_eq!(read.body, [message(0, CONTENT), message(0, b"plain")].concat());
        assert!(read.headers.is_empty());
        for odd in [
            grpc("snappy", message(1, b"?")),
            grpc("gzip", message(1, b"not gzip")),
            grpc("gzip", message(1, &gzip(CONTENT))[..9].to_vec()),
            grpc("gzip", message(2, b"?")),
            grpc("identity", message(0, CONTENT)),
        ] {
            assert_eq!(readable_messages(odd.clone(), Some("")), odd);
        }
    }

    #[test]
    fn what_cannot_be_decoded_within_its_bounds_is_replayed_as_it_was() {
        let bomb = gzip(&vec![0; 64 << 20]);
        for recorded in [coded("gzip", bomb), coded("gzip", b"not gzip".to_vec()), coded("unheard-of", vec![1, 2])] {
            assert_eq!(readable(recorded.clone(), Some("identity")), recorded);
        }
    }
}
