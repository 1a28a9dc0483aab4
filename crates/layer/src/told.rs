//! What became of a request, for whoever wants to know it: traces, most of all.

use std::{fmt, sync::OnceLock, time::Duration};

use http::HeaderValue;
use onceward_core::key::RecordId;

/// A request on a covered route, once it has its answer.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Told<'a> {
    /// Name of its route.
    pub route: &'a str,
    /// What became of it, as the log says it: `executed`, `replayed`, `mismatch`, the slug of a refusal.
    pub decision: &'a str,
    /// The id of its record, where it has a key.
    pub record: Option<RecordId>,
    /// Which execution it was, where it was one.
    pub attempt: Option<u32>,
    /// The status of its answer.
    pub status: Option<u16>,
    /// From its head to its answer.
    pub took: Duration,
    /// The part of it that the upstream took.
    pub upstream: Option<Duration>,
    /// Its own answer came after its claim was lost.
    pub fenced: bool,
    /// The trace it belongs to (W3C Trace Context), as the client spelled it.
    pub trace_parent: Option<&'a HeaderValue>,
}

type Listener = Box<dyn Fn(&Told<'_>) + Send + Sync>;

/// Who is told. Nobody, unless an engine was given a listener.
#[derive(Default)]
pub(crate) struct Teller(OnceLock<Listener>);

impl Teller {
    /// The first listener stays.
    pub(crate) fn set(&self, listener: Listener) {
        let _taken = self.0.set(listener);
    }

    pub(crate) fn is_heard(&self) -> bool {
        self.0.get().is_some()
    }

    pub(crate) fn tell(&self, told: &Told<'_>) {
        if let Some(listener) = self.0.get() {
            listener(told);
        }
    }
}

impl fmt::Debug for Teller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Teller(heard: {})", self.is_heard())
    }
}
