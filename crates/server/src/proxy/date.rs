//! The date of an answer.

use std::cell::RefCell;
use std::time::SystemTime;

use http::{HeaderValue, Response, header};

/// An answer with a date: the upstream's, or now.
pub(super) fn dated<B>(mut response: Response<B>) -> Response<B> {
    response.headers_mut().entry(header::DATE).or_insert_with(now);
    response
}

/// The time of day as RFC 9110 section 6.6.1 has it, written anew once a second.
fn now() -> HeaderValue {
    thread_local! {
        static SAID: RefCell<(u64, HeaderValue)> = const { RefCell::new((0, HeaderValue::from_static(""))) };
    }
    #[expect(clippy::disallowed_methods, reason = "for people to read, nothing is decided by it")]
    let time = SystemTime::now();
    let second = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    SAID.with_borrow_mut(|(of, said)| {
        if *of != second
            && let Ok(next) = HeaderValue::from_str(&httpdate::fmt_http_date(time))
        {
            (*of, *said) = (second, next);
        }
        said.clone()
    })
}
