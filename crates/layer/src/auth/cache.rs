//! Which questions were answered with yes just now.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use http::Request;
use tokio::time::Instant;

/// Answers that are remembered; the oldest go first.
const ANSWERS_MAX: usize = 10_000;
/// What the callers named in them take together.
const CALLERS_BYTES_MAX: usize = 1 << 20;

/// A keyed hash of all that is sent, so that no credential is kept, and none can be found by one that collides.
pub(super) type QuestionId = [u8; 32];

#[derive(Debug)]
pub(super) struct Cache {
    key: [u8; 32],
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    allowed: HashMap<QuestionId, Allowed>,
    /// All count for equally long: the oldest ends first.
    order: VecDeque<(QuestionId, Instant)>,
    callers_bytes: usize,
}

struct Allowed {
    principal: Option<Arc<str>>,
    until: Instant,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("State").field("allowed", &self.allowed.len()).finish()
    }
}

impl Cache {
    pub(super) fn new() -> Self {
        let mut key = [0; 32];
        for half in key.chunks_exact_mut(16) {
            half.copy_from_slice(uuid::Uuid::new_v4().as_bytes());
        }
        Self { key, state: Mutex::default() }
    }

    pub(super) fn id(&self, question: &Request<()>) -> QuestionId {
        let mut hasher = blake3::Hasher::new_keyed(&self.key);
        let mut part = |bytes: &[u8]| {
            hasher.update(&(bytes.len() as u64).to_be_bytes());
            hasher.update(bytes);
        };
        for (name, value) in question.headers() {
            part(name.as_str().as_bytes());
            part(value.as_bytes());
        }
        *hasher.finalize().as_bytes()
    }

    /// Whether it was answered with yes, and whose it is then.
    pub(super) fn look(&self, id: QuestionId, now: Instant) -> Option<Option<Arc<str>>> {
        let state = self.lock();
        state.allowed.get(&id).filter(|allowed| allowed.until > now).map(|allowed| allowed.principal.clone())
    }

    /// The question was answered with yes.
    pub(super) fn allow(&self, id: QuestionId, principal: Option<Arc<str>>, until: Instant) {
        let mut state = self.lock();
        state.callers_bytes += principal.as_ref().map_or(0, |principal| principal.len());
        state.order.push_back((id, until));
        if let Some(before) = state.allowed.insert(id, Allowed { principal, until }) {
            state.callers_bytes -= before.bytes();
        }
        state.make_room(Instant::now());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn make_room(&mut self, now: Instant) {
        while let Some(&(id, until)) = self.order.front() {
            let full = self.allowed.len() > ANSWERS_MAX || self.callers_bytes > CALLERS_BYTES_MAX;
            if until > now && !full && self.order.len() <= 2 * ANSWERS_MAX {
                return;
            }
            self.order.pop_front();
            // One that was asked again since stands further back.
            if self.allowed.get(&id).is_some_and(|allowed| allowed.until == until)
                && let Some(gone) = self.allowed.remove(&id)
            {
                self.callers_bytes -= gone.bytes();
            }
        }
    }
}

impl Allowed {
    fn bytes(&self) -> usize {
        self.principal.as_ref().map_or(0, |principal| principal.len())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn question(credential: &str) -> Request<()> {
        Request::get("http://auth/").header("authorization", credential).body(()).unwrap()
    }

    #[test]
    fn what_is_remembered_is_bounded_in_number_and_size_and_the_oldest_goes_first() {
        let cache = Cache::new();
        let now = Instant::now();
        let until = now + Duration::from_secs(3600);
        let id = |n: usize| cache.id(&question(&n.to_string()));
        let is_known = |n| cache.look(id(n), now).is_some();
        (0..=ANSWERS_MAX).for_each(|n| cache.allow(id(n), None, until));
        assert_eq!((is_known(0), is_known(1), is_known(ANSWERS_MAX)), (false, true, true));
        let long: Arc<str> = "x".repeat(1024).into();
        (0..2000).for_each(|n| cache.allow(id(100_000 + n), Some(Arc::clone(&long)), until));
        assert_eq!((is_known(100_000), is_known(101_999)), (false, true));
        assert!(cache.lock().callers_bytes <= CALLERS_BYTES_MAX);
        // The same question over and over takes one place.
        (0..3 * ANSWERS_MAX).for_each(|_| cache.allow(id(7), None, until));
        assert!(cache.lock().order.len() <= 2 * ANSWERS_MAX + 1);
    }

    #[test]
    fn whatever_is_sent_makes_another_question() {
        let cache = Cache::new();
        let ids = [
            cache.id(&question("a")),
            cache.id(&question("b")),
            cache.id(&Request::get("http://auth/").header("cookie", "a").body(()).unwrap()),
            cache.id(&Request::get("http://auth/").header("a", "uthorizationa").body(()).unwrap()),
            Cache::new().id(&question("a")),
        ];
        let distinct: std::collections::HashSet<_> = ids.iter().collect();
        assert_eq!(distinct.len(), ids.len());
    }
}
