//! How many effects there are: a number that a URL tells, in its JSON or in a header.
//!
//! What cannot be read is unknown. Nothing here makes a zero of it, with one exception that is said: where the URL has the
//! key in it, 404 means that nothing took effect under that key.

use std::time::Duration;

use serde_json::Value;
use thiserror::Error;
use tokio::time::Instant;

use super::message::{Line, Operation, Url, question};
use super::wire::{Client, NoAnswer};

/// The longest answer of the counter that is read.
const BODY_BYTES_MAX: usize = 16 << 20;
/// Where a counter's URL has the key.
pub(super) const KEY: &str = "{key}";

/// Where in the answer the number is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum At {
    /// RFC 6901, in the JSON of the body: a number, or the length of an array.
    Pointer(String),
    /// In a header.
    Header(String),
}

/// The counter cannot be read.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(super) enum Unreadable {
    #[error("the counter gives {0}")]
    NoAnswer(#[from] NoAnswer),
    #[error(
        "the counter answers {0}; it must answer 2xx, or 404 for a key without effects where {{key}} is in its URL"
    )]
    Status(u16),
    #[error("the counter's answer is over {} MiB", BODY_BYTES_MAX >> 20)]
    TooLong,
    #[error("the counter's answer is not JSON")]
    NotJson,
    #[error("the counter's answer has no whole number and no array at {0:?}")]
    NothingThere(String),
    #[error("the counter's answer has no header {0} with a whole number")]
    NoHeader(String),
    #[error("the counter does not come to rest: something else moves it, or effects go on")]
    Restless,
}

/// The counter of effects.
pub(super) struct Counter {
    pub(super) client: Client,
    pub(super) url: Url,
    pub(super) headers: Vec<Line>,
    pub(super) at: At,
    /// How long it must stand still.
    pub(super) settle: Duration,
}

impl Counter {
    /// Whether it counts for one key, and not a total.
    pub(super) fn is_by_key(&self) -> bool {
        self.url.has(KEY)
    }

    /// The URL that is asked for a key.
    pub(super) fn url_of(&self, key: &str) -> Url {
        self.url.with(KEY, &crate::cli::percent_encoded(key))
    }

    /// What the number is of, in words.
    pub(super) fn place(&self) -> String {
        match &self.at {
            At::Pointer(pointer) => pointer.clone(),
            At::Header(name) => format!("header {name}"),
        }
    }

    /// The number as it is now. Asked once more where the connection failed.
    pub(super) async fn read(&self, key: &str) -> Result<u64, Unreadable> {
        let operation = Operation::new(key, 0);
        let request = question(&self.url_of(key), &self.headers, &operation);
        let answer = match self.client.ask(&request, BODY_BYTES_MAX).await {
            Err(NoAnswer::Late) => Err(NoAnswer::Late),
            Err(_) => self.client.ask(&request, BODY_BYTES_MAX).await,
            answer => answer,
        }?;
        if answer.status == 404 && self.is_by_key() {
            return Ok(0);
        }
        if !answer.is_success() {
            return Err(Unreadable::Status(answer.status));
        }
        match &self.at {
            At::Header(name) => {
                let number = answer.header(name).and_then(|value| value.trim().parse().ok());
                number.ok_or_else(|| Unreadable::NoHeader(name.clone()))
            }
            At::Pointer(_) if answer.is_cut => Err(Unreadable::TooLong),
            At::Pointer(pointer) => {
                let json: Value = serde_json::from_slice(&answer.body).map_err(|_| Unreadable::NotJson)?;
                count(json.pointer(pointer)).ok_or_else(|| Unreadable::NothingThere(pointer.clone()))
            }
        }
    }

    /// The number once it has stood still. An effect may come after its answer, and after its client is gone.
    pub(super) async fn at_rest(&self, key: &str) -> Result<u64, Unreadable> {
        let end = self.client.deadline() + self.settle;
        let pause = (self.settle / 4).max(Duration::from_millis(5));
        let mut count = self.read(key).await?;
        let mut since = Instant::now();
        while since.elapsed() < self.settle {
            if Instant::now() > end {
                return Err(Unreadable::Restless);
            }
            tokio::time::sleep(pause).await;
            let now = self.read(key).await?;
            if now != count {
                (count, since) = (now, Instant::now());
            }
        }
        Ok(count)
    }
}

fn count(found: Option<&Value>) -> Option<u64> {
    match found? {
        Value::Array(values) => u64::try_from(values.len()).ok(),
        Value::Number(number) => number.as_u64(),
        Value::String(text) => text.parse().ok(),
        Value::Null | Value::Bool(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_count_is_a_whole_number_or_the_length_of_an_array_and_nothing_else_is_taken_for_zero() {
        for (found, counted) in [
            (json!(3), Some(3)),
            (json!("3"), Some(3)),
            (json!([1, 2]), Some(2)),
            (json!([]), Some(0)),
            (json!(-1), None),
            (json!(1.5), None),
            (json!(null), None),
            (json!({}), None),
            (json!(false), None),
            (json!("many"), None),
        ] {
            assert_eq!(count(Some(&found)), counted, "{found}");
        }
        assert_eq!(count(None), None);
    }
}
