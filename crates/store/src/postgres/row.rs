//! Records as rows: what is handed to the steps in SQL, and what comes back.

use std::time::Duration;

use bytes::{BufMut as _, Bytes};
use onceward_core::{
    outcome::{Checkpoint, Field, Outcome},
    record::{ClaimId, Facts, Fence, Micros, Phase, Record, Revision, SessionId, State, Stored},
};
use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};

/// A parameter with its type, so that no statement has to be prepared to learn it.
pub(super) type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// The columns of a record in an answer, after those of the step.
pub(super) const THERE: &str = "(there).fence, (there).revision, (there).lease_until, (there).keep_until, \
    (there).written_at, (there).state, (there).dispatched, (there).ambiguous, (there).attempt, (there).claim_id, \
    (there).session, (there).principal_proof, (there).fingerprint_policy, (there).fingerprint, (there).fields, \
    (there).route, (there).tenant, (there).env, (there).claimed_at, (there).settled_at, (there).not_before, \
    (there).reason, (there).status, (there).headers, (there).body, (there).trailers, (there).body_not_kept, \
    (there).body_until, (there).checkpoint_seq, (there).checkpoint_name, (there).checkpoint_data";

/// Bytes that a record takes beside its texts and contents; the same as in SQL.
const RECORD_BYTES: usize = 256;

/// As a bigint; what is beyond is as far as there is.
pub(super) fn big(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A span in microseconds that can be added to any time without overflow.
pub(super) fn span(span: Duration) -> i64 {
    i64::try_from(span.as_micros()).unwrap_or(i64::MAX).min(i64::MAX / 2)
}

/// What the bytes of a record are counted as.
pub(super) fn bytes_of(facts: &Facts) -> u64 {
    let fields = |fields: &[Field]| fields.iter().map(|field| 6 + field.name.len() + field.value.len()).sum::<usize>();
    let outcome = |outcome: &Outcome| outcome.body.len() + fields(&outcome.headers) + fields(&outcome.trailers);
    let bytes = RECORD_BYTES
        + 8 * facts.fields.len()
        + facts.route.len()
        + facts.tenant.len()
        + facts.env.len()
        + facts.reason.len()
        + facts.outcome.as_ref().map_or(0, outcome)
        + facts.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.name.len() + checkpoint.data.len());
    bytes as u64
}

macro_rules! columns {
    ($name:ident { $($field:ident: $of:ty, $type:ident;)* }) => {
        /// The same facts of many records, a column each.
        #[derive(Debug, Default)]
        pub(super) struct $name<'a> {
            $($field: Vec<$of>,)*
        }

        impl<'a> $name<'a> {
            /// As parameters, in the order of the steps in SQL.
            pub(super) fn parameters(&self) -> Vec<Parameter<'_>> {
                vec![$((&self.$field as _, Type::$type),)*]
            }
        }
    };
}

columns!(Claimed {
    state: i16, INT2_ARRAY;
    dispatched: bool, BOOL_ARRAY;
    ambiguous: bool, BOOL_ARRAY;
    attempt: i64, INT8_ARRAY;
    claim_id: &'a [u8], BYTEA_ARRAY;
    session: &'a [u8], BYTEA_ARRAY;
    principal_proof: Option<&'a [u8]>, BYTEA_ARRAY;
    fingerprint_policy: i64, INT8_ARRAY;
    fingerprint: &'a [u8], BYTEA_ARRAY;
    fields: &'a [u8], BYTEA_ARRAY;
    route: &'a str, TEXT_ARRAY;
    tenant: &'a str, TEXT_ARRAY;
    env: &'a str, TEXT_ARRAY;
    claimed_at: i64, INT8_ARRAY;
    settled_at: i64, INT8_ARRAY;
    not_before: i64, INT8_ARRAY;
    reason: &'a str, TEXT_ARRAY;
});

columns!(Settled {
    status: Option<i16>, INT2_ARRAY;
    headers: Option<Bytes2>, BYTEA_ARRAY;
    body: Option<&'a [u8]>, BYTEA_ARRAY;
    trailers: Option<Bytes2>, BYTEA_ARRAY;
    body_not_kept: bool, BOOL_ARRAY;
    body_until: i64, INT8_ARRAY;
    checkpoint_seq: Option<i64>, INT8_ARRAY;
    checkpoint_name: Option<&'a str>, TEXT_ARRAY;
    checkpoint_data: Option<&'a [u8]>, BYTEA_ARRAY;
});

type Bytes2 = Vec<u8>;

impl<'a> Claimed<'a> {
    /// One more record.
    pub(super) fn push(&mut self, facts: &'a Facts) {
        self.state.push(facts.state as i16);
        self.dispatched.push(facts.phase == Phase::Dispatched);
        self.ambiguous.push(facts.ambiguous);
        self.attempt.push(i64::from(facts.attempt));
        self.claim_id.push(&facts.claim_id.0);
        self.session.push(&facts.session.0);
        self.principal_proof.push(facts.principal_proof.as_ref().map(<[u8; 16]>::as_slice));
        self.fingerprint_policy.push(i64::from(facts.fingerprint_policy));
        self.fingerprint.push(&facts.fingerprint);
        self.fields.push(facts.fields.as_flattened());
        self.route.push(&facts.route);
        self.tenant.push(&facts.tenant);
        self.env.push(&facts.env);
        self.claimed_at.push(big(facts.claimed_at.0));
        self.settled_at.push(big(facts.settled_at.0));
        self.not_before.push(big(facts.not_before.0));
        self.reason.push(&facts.reason);
    }
}

impl<'a> Settled<'a> {
    /// One more record.
    pub(super) fn push(&mut self, facts: &'a Facts) {
        let outcome = facts.outcome.as_ref();
        // Statuses have three digits.
        self.status.push(outcome.map(|outcome| i16::try_from(outcome.status).unwrap_or(i16::MAX)));
        self.headers.push(outcome.map(|outcome| packed(&outcome.headers)));
        self.body.push(outcome.map(|outcome| &*outcome.body));
        self.trailers.push(outcome.map(|outcome| packed(&outcome.trailers)));
        self.body_not_kept.push(outcome.is_some_and(|outcome| outcome.body_not_kept));
        self.body_until.push(outcome.map_or(0, |outcome| big(outcome.body_until.0)));
        let checkpoint = facts.checkpoint.as_ref();
        self.checkpoint_seq.push(checkpoint.map(|checkpoint| i64::from(checkpoint.seq)));
        self.checkpoint_name.push(checkpoint.map(|checkpoint| &*checkpoint.name));
        self.checkpoint_data.push(checkpoint.map(|checkpoint| &*checkpoint.data));
    }
}

/// Header fields as the column has them.
fn packed(fields: &[Field]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for Field { name, value } in fields {
        // What is longer than its length can say never came over HTTP.
        let name = name.get(..name.len().min(usize::from(u16::MAX))).unwrap_or_default();
        bytes.put_u16(u16::try_from(name.len()).unwrap_or(u16::MAX));
        bytes.put_slice(name);
        bytes.put_u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
        bytes.put_slice(value);
    }
    bytes
}

/// The inverse; `None` where the bytes are not such.
pub(super) fn unpacked(mut bytes: Bytes) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let name_len = u16::from_be_bytes(*bytes.first_chunk()?);
        let mut name = bytes.split_off(2);
        let mut value = name.try_split_off(usize::from(name_len))?;
        let value_len = usize::try_from(u32::from_be_bytes(*value.first_chunk()?)).ok()?;
        value = value.split_off(4);
        bytes = value.try_split_off(value_len)?;
        fields.push(Field { name, value });
    }
    Some(fields)
}

/// `split_off` that does not panic beyond the end.
trait TrySplitOff: Sized {
    fn try_split_off(&mut self, at: usize) -> Option<Self>;
}

impl TrySplitOff for Bytes {
    fn try_split_off(&mut self, at: usize) -> Option<Self> {
        (at <= self.len()).then(|| self.split_off(at))
    }
}

/// What is wrong with a row: it was not written by this program.
#[derive(Debug, thiserror::Error)]
#[error("column {column} of the record cannot be read: {why}; it was written by hand or by another program")]
pub(super) struct BadRow {
    column: &'static str,
    why: String,
}

/// Reads columns one after another.
struct Reader<'a> {
    row: &'a Row,
    at: usize,
}

impl<'a> Reader<'a> {
    fn next<T: tokio_postgres::types::FromSql<'a>>(&mut self, column: &'static str) -> Result<T, BadRow> {
        let value = self.row.try_get(self.at).map_err(|error| BadRow { column, why: error.to_string() });
        self.at += 1;
        value
    }

    fn unsigned(&mut self, column: &'static str) -> Result<u64, BadRow> {
        let value: i64 = self.next(column)?;
        u64::try_from(value).map_err(|_| bad(column, "it is negative"))
    }

    fn small(&mut self, column: &'static str) -> Result<u32, BadRow> {
        u32::try_from(self.unsigned(column)?).map_err(|_| bad(column, "it is too large"))
    }

    fn array<const N: usize>(&mut self, column: &'static str) -> Result<[u8; N], BadRow> {
        let bytes: &[u8] = self.next(column)?;
        bytes.try_into().map_err(|_| bad(column, "its length is wrong"))
    }

    fn micros(&mut self, column: &'static str) -> Result<Micros, BadRow> {
        self.unsigned(column).map(Micros)
    }
}

fn bad(column: &'static str, why: &str) -> BadRow {
    BadRow { column, why: why.to_owned() }
}

/// The record whose columns begin at `at`; `None` where there is none.
pub(super) fn record(row: &Row, at: usize) -> Result<Option<Record>, BadRow> {
    let mut from = Reader { row, at };
    if row.try_get::<_, Option<i64>>(at).is_ok_and(|fence| fence.is_none()) {
        return Ok(None);
    }
    let stored = Stored {
        fence: Fence(from.unsigned("fence")?),
        revision: Revision(from.unsigned("revision")?),
        lease_until: from.micros("lease_until")?,
        keep_until: from.micros("keep_until")?,
        written_at: from.micros("written_at")?,
    };
    let state = match from.next::<i16>("state")? {
        1 => State::InFlight,
        2 => State::NotExecuted,
        3 => State::Completed,
        4 => State::Failed,
        5 => State::Erased,
        _ => return Err(bad("state", "there is no such state")),
    };
    let phase = if from.next("dispatched")? { Phase::Dispatched } else { Phase::Claimed };
    let mut facts = Facts {
        state,
        phase,
        ambiguous: from.next("ambiguous")?,
        attempt: from.small("attempt")?,
        claim_id: ClaimId(from.array("claim_id")?),
        session: SessionId(from.array("session")?),
        principal_proof: match from.next::<Option<&[u8]>>("principal_proof")? {
            None => None,
            Some(proof) => Some(proof.try_into().map_err(|_| bad("principal_proof", "its length is wrong"))?),
        },
        fingerprint_policy: from.small("fingerprint_policy")?,
        fingerprint: from.array("fingerprint")?,
        fields: {
            let (fields, rest) = from.next::<&[u8]>("fields")?.as_chunks::<8>();
            if !rest.is_empty() {
                return Err(bad("fields", "its length is wrong"));
            }
            fields.to_vec()
        },
        route: from.next("route")?,
        tenant: from.next("tenant")?,
        env: from.next("env")?,
        claimed_at: from.micros("claimed_at")?,
        settled_at: from.micros("settled_at")?,
        not_before: from.micros("not_before")?,
        reason: from.next("reason")?,
        outcome: None,
        checkpoint: None,
    };
    let status: Option<i16> = from.next("status")?;
    let [headers, body, trailers] = [from.next("headers")?, from.next("body")?, from.next("trailers")?]
        .map(|column: Option<&[u8]>| column.map(Bytes::copy_from_slice));
    let (body_not_kept, body_until) = (from.next("body_not_kept")?, from.micros("body_until")?);
    facts.outcome = match (status, headers, body, trailers) {
        (None, None, None, None) => None,
        (Some(status), Some(headers), Some(body), Some(trailers)) => Some(Outcome {
            status: u16::try_from(status).map_err(|_| bad("status", "it is negative"))?,
            headers: unpacked(headers).ok_or_else(|| bad("headers", "it is cut short"))?,
            body,
            trailers: unpacked(trailers).ok_or_else(|| bad("trailers", "it is cut short"))?,
            body_not_kept,
            body_until,
        }),
        _ => return Err(bad("status", "of an outcome, some columns are null")),
    };
    let seq: Option<i64> = from.next("checkpoint_seq")?;
    let (name, data) =
        (from.next::<Option<String>>("checkpoint_name")?, from.next::<Option<&[u8]>>("checkpoint_data")?);
    facts.checkpoint = match (seq, name, data) {
        (None, None, None) => None,
        (Some(seq), Some(name), Some(data)) => Some(Checkpoint {
            seq: u32::try_from(seq).map_err(|_| bad("checkpoint_seq", "it is out of range"))?,
            name,
            data: Bytes::copy_from_slice(data),
        }),
        _ => return Err(bad("checkpoint_seq", "of a checkpoint, some columns are null")),
    };
    Ok(Some(Record { stored, facts }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_fields_come_back_as_they_were_and_what_is_cut_short_is_none() {
        let field = |name: &'static [u8], value: &'static [u8]| Field { name: name.into(), value: value.into() };
        let fields = vec![field(b"a", b"\xFF\x00"), field(b"a", b""), field(b"", b"x")];
        let bytes = packed(&fields);
        assert_eq!(unpacked(bytes.clone().into()), Some(fields));
        assert_eq!(unpacked(Bytes::new()), Some(vec![]));
        let whole = [9, 15, 22];
        for cut in (1..bytes.len()).filter(|cut| !whole.contains(cut)) {
            let short = unpacked(Bytes::copy_from_slice(&bytes[..cut]));
            assert!(short.is_none_or(|fields| fields.len() < 3), "{cut} bytes of {}", bytes.len());
        }
    }
}
