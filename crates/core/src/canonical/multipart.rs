//! Multipart bodies by part, without the boundary, which clients draw anew for each attempt.
//!
//! Only the plain shape that clients send is taken apart: no text before the first or after the
//! last delimiter, no padding, every delimiter clean. Whatever a server might read in another
//! way than this is hashed byte for byte.

use alloc::vec::Vec;

/// Where the boundary or the structure is not what this module takes apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NotPlain;

/// Appends each part as the length of its header block (u32, big-endian), the block as sent, the
/// length of its content (u32) and the content. On an error `out` may hold a beginning.
pub(crate) fn write(body: &[u8], boundary: &[u8], out: &mut Vec<u8>) -> Result<(), NotPlain> {
    let delimiter = [b"\r\n--", boundary].concat();
    let first = delimiter.get(2..).unwrap_or_default();
    let mut rest = body.strip_prefix(first).ok_or(NotPlain)?;
    loop {
        rest = match rest {
            b"--" | b"--\r\n" => return Ok(()),
            _ => rest.strip_prefix(b"\r\n").ok_or(NotPlain)?,
        };
        let end = find(rest, &delimiter).ok_or(NotPlain)?;
        let (part, after) = rest.split_at(end);
        let headers_end = if part.starts_with(b"\r\n") { 0 } else { find(part, b"\r\n\r\n").ok_or(NotPlain)? + 2 };
        let (headers, content) = part.split_at(headers_end);
        push_part(headers, out)?;
        push_part(content.strip_prefix(b"\r\n").ok_or(NotPlain)?, out)?;
        rest = after.strip_prefix(&*delimiter).ok_or(NotPlain)?;
    }
}

fn push_part(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), NotPlain> {
    out.extend_from_slice(&u32::try_from(bytes.len()).map_err(|_| NotPlain)?.to_be_bytes());
    out.extend_from_slice(bytes);
    Ok(())
}

/// The needle starts with a carriage return, has at most 74 bytes and repeats none of its
/// beginning but there, so skipping from one to the next keeps this linear.
fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        let rest = haystack.get(from..)?;
        let at = from + rest.iter().position(|byte| *byte == b'\r')?;
        if haystack.get(at..)?.starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::format;
    use std::string::String;

    fn parts(body: &str, boundary: &str) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        write(body.as_bytes(), boundary.as_bytes(), &mut out).ok().map(|()| out)
    }

    fn body(boundary: &str, values: &[&str]) -> String {
        let part =
            |value: &&str| format!("--{boundary}\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n{value}\r\n");
        values.iter().map(part).collect::<String>() + &format!("--{boundary}--\r\n")
    }

    #[test]
    fn the_boundary_does_not_count_and_the_parts_do() {
        let one = parts(&body("abc", &["x", "y"]), "abc").unwrap();
        assert_eq!(parts(&body("other", &["x", "y"]), "other").unwrap(), one);
        assert_ne!(parts(&body("abc", &["y", "x"]), "abc").unwrap(), one);
        assert_ne!(parts(&body("abc", &["xy", ""]), "abc").unwrap(), one);
        assert_ne!(parts(&body("abc", &["x"]), "abc").unwrap(), one);
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_not_taken_apart() {
        for body in [
            "preamble\r\n--b\r\n\r\nx\r\n--b--",
            "--b\r\n\r\nx\r\n--b--\r\nepilogue",
            "--b \r\n\r\nx\r\n--b--",
            "--b\r\n\r\nx\r\n--bc\r\n\r\ny\r\n--b--",
            "--b\r\nno header end\r\n--b--",
            "--b\r\n\r\nx",
            "--b\n\nx\n--b--",
            "",
        ] {
            assert_eq!(parts(body, "b"), None, "{body:?}");
        }
        assert!(parts("--b\r\n\r\nx\r\n--b--", "b").is_some());
        assert!(parts("--b--", "b").is_some());
    }
}
