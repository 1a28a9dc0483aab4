//! What a content type says of a body.

/// How a body of some content type is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Media<'a> {
    /// `application/json` and everything with the suffix `+json`.
    Json,
    /// `application/x-www-form-urlencoded`.
    Form,
    /// `multipart/…` with the boundary that its parameter names.
    Multipart {
        boundary: Option<&'a [u8]>,
    },
    Other,
}

/// Reads a `Content-Type` value. Parameters do not count, but for a multipart's boundary.
pub(crate) fn read(content_type: &[u8]) -> Media<'_> {
    let mut parts = content_type.splitn(2, |byte| *byte == b';');
    let essence = parts.next().unwrap_or_default().trim_ascii();
    if essence.eq_ignore_ascii_case(b"application/json") || has_json_suffix(essence) {
        return Media::Json;
    }
    if essence.eq_ignore_ascii_case(b"application/x-www-form-urlencoded") {
        return Media::Form;
    }
    if essence.get(..10).is_some_and(|start| start.eq_ignore_ascii_case(b"multipart/")) {
        return Media::Multipart { boundary: boundary(parts.next().unwrap_or_default()) };
    }
    Media::Other
}

fn has_json_suffix(essence: &[u8]) -> bool {
    // A bare `+json` or `x/+json` names no type.
    let Some(at) = essence.len().checked_sub(5) else {
        return false;
    };
    let (before, suffix) = essence.split_at(at);
    let mut halves = before.splitn(2, |byte| *byte == b'/');
    let named =
        halves.next().is_some_and(|kind| !kind.is_empty()) && halves.next().is_some_and(|name| !name.is_empty());
    named && suffix.eq_ignore_ascii_case(b"+json")
}

/// RFC 2046: 1 to 70 characters, quoted where need be. One that is named twice is none.
fn boundary(parameters: &[u8]) -> Option<&[u8]> {
    let mut found = None;
    for parameter in parameters.split(|byte| *byte == b';') {
        let Some(at) = parameter.iter().position(|byte| *byte == b'=') else {
            continue;
        };
        let (name, value) = parameter.split_at(at);
        if !name.trim_ascii().eq_ignore_ascii_case(b"boundary") {
            continue;
        }
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        let value = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
        let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=? ".contains(byte);
        if found.is_some() || !(1..=70).contains(&value.len()) || !value.iter().all(allowed) {
            return None;
        }
        found = Some(value);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_media_type_decides_and_parameters_do_not() {
        for json in [
            "application/json",
            "Application/JSON; charset=utf-8",
            " application/vnd.api+json;v=1",
            "application/problem+JSON",
        ] {
            assert_eq!(read(json.as_bytes()), Media::Json, "{json}");
        }
        for other in [
            "",
            "+json",
            "x/+json",
            "text/json",
            "application/jsonl",
            "text/plain; x=application/json",
            "application/json, text/plain",
        ] {
            assert_eq!(read(other.as_bytes()), Media::Other, "{other}");
        }
        assert_eq!(read(b"application/x-www-form-urlencoded ; charset=x"), Media::Form);
    }

    #[test]
    fn a_boundary_is_read_or_there_is_none() {
        let boundary = |text: &'static str| read(text.as_bytes());
        assert_eq!(boundary("multipart/form-data; boundary=abc"), Media::Multipart { boundary: Some(b"abc") });
        assert_eq!(boundary("Multipart/mixed; x=y; BOUNDARY=\"a b=c\""), Media::Multipart { boundary: Some(b"a b=c") });
        for none in
            ["multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=a; boundary=b"]
        {
            assert_eq!(boundary(none), Media::Multipart { boundary: None }, "{none}");
        }
    }
}
