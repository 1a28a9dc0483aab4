//! What a route wants: how long, how often, and what to make of the upstream's answer.

use alloc::{string::String, vec::Vec};
use core::time::Duration;

/// A route's policy, as far as the decision needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How long a settled key is remembered, counted from its completion.
    pub retention: Duration,
    /// Body and trailers of an answer are forgotten so long after its completion; `None`: with the key.
    pub retention_body: Option<Duration>,
    /// Each replay extends the retention, up to this long after completion.
    pub sliding_max: Option<Duration>,
    /// How long a holder's right lasts without renewal.
    pub lease: Duration,
    /// Claim first, mark as dispatched in a second write: a claim that was never sent is then
    /// taken over instead of being an unknown outcome.
    pub two_phase_dispatch: bool,
    /// What to do when a request meets an unknown outcome, in order.
    pub on_unknown: Vec<Step>,
    /// How many attempts [`Step::Retry`] adds at most.
    pub retry_max: u32,
    /// After so long an unknown outcome is settled as failed.
    pub unknown_max: Duration,
    /// What to do when the store does not answer before a claim.
    pub on_store_outage: Outage,
    /// Which answers are recorded.
    pub recording: Recording,
}

impl Default for Policy {
    fn default() -> Self {
        const HOUR: u64 = 60 * 60;
        Self {
            retention: Duration::from_secs(24 * HOUR),
            retention_body: None,
            sliding_max: None,
            lease: Duration::from_secs(10),
            two_phase_dispatch: false,
            on_unknown: alloc::vec![Step::Hold],
            retry_max: 3,
            unknown_max: Duration::from_secs(30 * 24 * HOUR),
            on_store_outage: Outage::Deny,
            recording: Recording::default(),
        }
    }
}

/// One step of `on_unknown`: it settles or passes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// Ends the list: the outcome stays unknown until somebody settles it.
    Hold,
    /// Passes on after so long.
    HoldFor(Duration),
    /// Runs it again with the next attempt and fence. Only right where the upstream checks the
    /// fence, or is idempotent by key itself.
    Retry,
    /// Settles it as failed.
    Fail,
    /// Asks whoever keeps the books whether it took effect; passes on where they cannot say.
    Probe {
        /// Not before so long after the last moment at which the request may have been sent: until then it may still
        /// be on its way, and the answer "not executed" would prove nothing. The list goes no further meanwhile.
        quiesce: Duration,
        /// Whether it can be asked without a request at hand.
        unattended: bool,
    },
    /// Looks for the effect in the database where the upstream writes it down, under a fence that refuses whoever may
    /// still be at work: what is not there then never will be. Passes on where the database does not answer.
    Effect,
}

/// What to do with a request when the store is unavailable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outage {
    /// Refuse it.
    Deny,
    /// Forward it unprotected, and say so.
    Bypass,
    /// Claim it in the store's fallback. Where that does not answer either, refuse it.
    Fallback,
}

/// What an upstream's answer means for the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// It is the key's answer.
    Record,
    /// Nothing was done: the next attempt runs.
    Release,
    /// Something may have been done.
    Unknown,
    /// It is the key's answer, and the key has failed.
    Fail,
}

/// Which answers are recorded.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Recording {
    /// The table that holds where nothing below says otherwise.
    pub preset: Preset,
    /// Statuses recorded whatever the preset says.
    pub record: Vec<u16>,
    /// Statuses released whatever the preset says.
    pub release: Vec<u16>,
    /// Statuses that are unknown outcomes whatever the preset says.
    pub unknown: Vec<u16>,
    /// Answers of load balancers that have not forwarded the request.
    pub release_when: Vec<Predicate>,
}

/// An answer with this status and this header was not made by the upstream itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Predicate {
    /// Its status.
    pub status: u16,
    /// A header that must be present; any where empty.
    pub header: String,
    /// The header's value; any where `None`.
    pub value: Option<String>,
}

/// Named tables of which statuses are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Preset {
    /// What is certain is recorded, what says "not done" is released, the rest is unknown.
    #[default]
    Safe,
    /// As safe, but 500 is released: the handler runs in a transaction that rolls back.
    Rollback,
    /// Only 2xx is recorded, everything else that the upstream answered is released.
    Success,
    /// As Stripe does.
    Stripe,
}

impl Recording {
    /// What `status` means. `header` looks a response header up. Where the principal is not
    /// verified, 400 and 404 are released as well, so that a forged one cannot block a key.
    pub fn class<'h>(
        &self,
        status: u16,
        unverified_principal: bool,
        header: impl Fn(&str) -> Option<&'h [u8]>,
    ) -> Class {
        if self.releases(status, &header) {
            return Class::Release;
        }
        for (statuses, class) in
            [(&self.record, Class::Record), (&self.release, Class::Release), (&self.unknown, Class::Unknown)]
        {
            if statuses.contains(&status) {
                return class;
            }
        }
        if unverified_principal && matches!(status, 400 | 404) {
            return Class::Release;
        }
        self.preset.class(status, header("retry-after").is_some())
    }

    /// Whether a predicate says that a load balancer answered, which has not forwarded the request.
    pub fn releases<'h>(&self, status: u16, header: &impl Fn(&str) -> Option<&'h [u8]>) -> bool {
        self.release_when.iter().any(|predicate| predicate.holds(status, header))
    }

    /// What a gRPC status means; `None` for an answer that ended without one. Where the principal is not verified,
    /// `INVALID_ARGUMENT` and `NOT_FOUND` are released as well, as 400 and 404 are.
    #[must_use]
    pub fn grpc_class(&self, status: Option<u8>, unverified_principal: bool) -> Class {
        match status {
            None => Class::Unknown,
            Some(3 | 5) if unverified_principal => Class::Release,
            Some(status) => self.preset.grpc_class(status),
        }
    }
}

impl Predicate {
    fn holds<'h>(&self, status: u16, header: &impl Fn(&str) -> Option<&'h [u8]>) -> bool {
        if status != self.status {
            return false;
        }
        if self.header.is_empty() {
            return true;
        }
        match (header(&self.header), &self.value) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(have), Some(want)) => have.eq_ignore_ascii_case(want.as_bytes()),
        }
    }
}

impl Preset {
    /// The table of PROTOCOL section 4, "What is recorded".
    #[must_use]
    pub fn class(self, status: u16, retry_after: bool) -> Class {
        match (self, status) {
            (Self::Success, 200..=299) => Class::Record,
            (Self::Success, _) => Class::Release,
            (Self::Rollback, 500) => Class::Release,
            (Self::Stripe, 400 | 401 | 403 | 404 | 409 | 429) => Class::Release,
            (Self::Stripe, 502..=504) => Class::Record,
            (_, 401 | 403 | 405 | 407 | 408 | 413 | 415 | 421 | 425 | 429) => Class::Release,
            (_, 409 | 503) if retry_after => Class::Release,
            (_, 200..=501) => Class::Record,
            _ => Class::Unknown,
        }
    }

    /// The same for the `grpc-status` of an answer, whose HTTP status is always 200.
    #[must_use]
    pub fn grpc_class(self, status: u8) -> Class {
        match (self, status) {
            // OK
            (_, 0) => Class::Record,
            (Self::Success, 1..=16) => Class::Release,
            // INTERNAL
            (Self::Rollback, 13) => Class::Release,
            // INVALID_ARGUMENT, NOT_FOUND, ALREADY_EXISTS, FAILED_PRECONDITION, OUT_OF_RANGE, UNIMPLEMENTED, INTERNAL,
            // DATA_LOSS
            (_, 3 | 5 | 6 | 9 | 11 | 12 | 13 | 15) => Class::Record,
            // PERMISSION_DENIED, RESOURCE_EXHAUSTED, ABORTED, UNAUTHENTICATED
            (_, 7 | 8 | 10 | 16) => Class::Release,
            // CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, UNAVAILABLE, and what is no status of gRPC.
            _ => Class::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_preset_is_the_table_of_the_protocol() {
        use Class::{Record, Release, Unknown};
        let rows: &[(Preset, u16, bool, Class)] = &[
            (Preset::Safe, 200, false, Record),
            (Preset::Safe, 303, false, Record),
            (Preset::Safe, 422, false, Record),
            (Preset::Safe, 400, false, Record),
            (Preset::Safe, 429, false, Release),
            (Preset::Safe, 409, false, Record),
            (Preset::Safe, 409, true, Release),
            (Preset::Safe, 500, false, Record),
            (Preset::Safe, 501, true, Record),
            (Preset::Safe, 502, true, Unknown),
            (Preset::Safe, 503, false, Unknown),
            (Preset::Safe, 503, true, Release),
            (Preset::Safe, 504, false, Unknown),
            (Preset::Safe, 599, false, Unknown),
            (Preset::Rollback, 500, false, Release),
            (Preset::Rollback, 501, false, Record),
            (Preset::Success, 204, false, Record),
            (Preset::Success, 302, false, Release),
            (Preset::Success, 503, false, Release),
            (Preset::Stripe, 500, false, Record),
            (Preset::Stripe, 502, false, Record),
            (Preset::Stripe, 503, true, Record),
            (Preset::Stripe, 404, false, Release),
            (Preset::Stripe, 402, false, Record),
        ];
        for &(preset, status, retry_after, class) in rows {
            assert_eq!(preset.class(status, retry_after), class, "{preset:?} {status} {retry_after}");
        }
        for status in [401, 403, 405, 407, 408, 413, 415, 421, 425, 429] {
            assert_eq!(Preset::Safe.class(status, false), Release, "{status}");
        }
    }

    #[test]
    fn a_grpc_status_is_classed_by_the_table_of_the_protocol_and_no_status_is_unknown() {
        use Class::{Record, Release, Unknown};
        let classes = |preset: Preset| (0..=17).map(|status| preset.grpc_class(status)).collect::<Vec<_>>();
        let safe = [
            Record, Unknown, Unknown, Record, Unknown, Record, Record, Release, Release, Record, Release, Record,
            Record, Record, Unknown, Record, Release, Unknown,
        ];
        assert_eq!(classes(Preset::Safe), safe);
        assert_eq!(classes(Preset::Stripe), safe);
        let mut rollback = safe;
        rollback[13] = Release;
        assert_eq!(classes(Preset::Rollback), rollback);
        let mut success = [Release; 18];
        (success[0], success[17]) = (Record, Unknown);
        assert_eq!(classes(Preset::Success), success);
        let safe = Recording::default();
        assert_eq!(safe.grpc_class(None, false), Unknown);
        assert_eq!((safe.grpc_class(Some(3), true), safe.grpc_class(Some(5), true)), (Release, Release));
        assert_eq!((safe.grpc_class(Some(0), true), safe.grpc_class(Some(9), true)), (Record, Record));
    }

    #[test]
    fn a_predicate_releases_before_any_status_list() {
        let recording = Recording {
            record: alloc::vec![503],
            release_when: alloc::vec![Predicate { status: 503, header: "x-envoy-overloaded".into(), value: None }],
            ..Recording::default()
        };
        assert_eq!(
            recording.class(503, false, |name| (name == "x-envoy-overloaded").then_some(b"true")),
            Class::Release
        );
        assert_eq!(recording.class(503, false, |_| None), Class::Record);
    }

    #[test]
    fn an_unverified_principal_cannot_block_a_key_with_a_bad_request() {
        assert_eq!(Recording::default().class(404, true, |_| None), Class::Release);
        assert_eq!(Recording::default().class(404, false, |_| None), Class::Record);
    }
}
