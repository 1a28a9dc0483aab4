//! Keyed hashes of a canonical request: the fingerprint that a record keeps instead of the
//! request, and the few digests by which a mismatch can name what differs.
//!
//! * [`Fingerprinter`]: the install secret made ready for hashing.
//! * [`Fingerprint`]: BLAKE3 under a key derived from the secret (context
//!   `onceward 2026-11 v1 fingerprint`), or HMAC-SHA-256 under the secret itself, whose domain is
//!   the first bytes of the canonical form. Equal requests have equal ones; without the secret
//!   nobody can test a guess at a request.
//! * [`Hasher`]: the same for a raw body that is hashed as it arrives.
//! * [`FieldDigest`]: four bytes of a field's name and four of its value, under a key of the
//!   record's own, so that equal values in two records do not show.

use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::hash::Hasher as _;

use hmac::{Hmac, Mac as _};
use sha2::Sha256;

use crate::canonical::{Canonical, Fields, Head, Rules};
use crate::key::{RecordId, Secret};

const FINGERPRINT_CONTEXT: &str = "onceward 2026-11 v1 fingerprint";
const FIELDS_CONTEXT: &str = "onceward 2026-11 v1 field digests";
/// Most names that a mismatch lists.
const NAMES_MAX: usize = 16;
/// A longer name is cut in a mismatch.
const NAME_BYTES_MAX: usize = 128;

/// The hash function of fingerprints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Hash {
    /// BLAKE3 keyed with 32 bytes that are derived from the secret.
    #[default]
    Blake3,
    /// HMAC-SHA-256 under the secret, where policy asks for a hash of that family.
    Sha256,
}

/// The keyed hash of a request's canonical bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    /// 64 hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// The hash that `key explain` shows: of the canonical bytes, without the secret.
#[must_use]
pub fn unkeyed_blake3(bytes: &[u8]) -> Fingerprint {
    Fingerprint(blake3::hash(bytes).into())
}

/// Makes fingerprints and field digests under one install secret.
#[derive(Clone)]
pub struct Fingerprinter {
    blake3_key: [u8; 32],
    fields_key: [u8; 32],
    mac: Hmac<Sha256>,
}

impl Fingerprinter {
    /// Derives the keys; once a process is enough.
    #[must_use]
    pub fn new(secret: &Secret) -> Self {
        Self {
            blake3_key: blake3::derive_key(FINGERPRINT_CONTEXT, secret.bytes()),
            fields_key: blake3::derive_key(FIELDS_CONTEXT, secret.bytes()),
            mac: secret.mac(),
        }
    }

    /// The fingerprint of a request in canonical form.
    #[must_use]
    pub fn fingerprint(&self, hash: Hash, canonical: &Canonical<'_>) -> Fingerprint {
        match hash {
            Hash::Blake3 => Fingerprint(blake3::keyed_hash(&self.blake3_key, canonical.bytes).into()),
            Hash::Sha256 => {
                let mut mac = self.mac.clone();
                mac.update(canonical.bytes);
                Fingerprint(mac.finalize().into_bytes().into())
            }
        }
    }

    /// Starts the fingerprint of a request whose raw body is still to come. It ends as that of
    /// the whole request in memory would.
    #[must_use]
    pub fn hasher(&self, hash: Hash, head: &Head<'_>) -> Hasher {
        let mut hasher = Hasher {
            state: match hash {
                Hash::Blake3 => HasherState::Blake3(blake3::Hasher::new_keyed(&self.blake3_key)),
                Hash::Sha256 => HasherState::Sha256(self.mac.clone()),
            },
            body_bytes: 0,
            body_counts: head.body_counts,
        };
        hasher.state.update(head.bytes);
        hasher
    }

    /// The digests that the record `record` keeps of a request's fields.
    #[must_use]
    pub fn field_digests(&self, record: &RecordId, fields: &Fields<'_>) -> Vec<FieldDigest> {
        let key = self.record_key(record);
        fields.iter().map(|(name, value)| key.digest(name, value)).collect()
    }

    /// What differs between a record's request, of which it keeps `stored`, and another with
    /// another fingerprint, whose `fields` come from
    /// [`Workspace::canonicalize_to_explain`](crate::canonical::Workspace::canonicalize_to_explain).
    ///
    /// Every name is true but for a chance of 2⁻³² each: it is a field whose value is another or
    /// that the record's request did not have. Where nothing more exact is known, it is `body`,
    /// the only part that can then differ. Without stored digests there are no names.
    #[must_use]
    pub fn differing(
        &self,
        record: &RecordId,
        stored: &[FieldDigest],
        fields: &Fields<'_>,
        rules: &Rules,
    ) -> Differences {
        let mut differences = Differences::default();
        if stored.is_empty() || fields.is_empty() {
            return differences;
        }
        let key = self.record_key(record);
        let value_of = |name: [u8; 4]| stored.iter().find(|digest| digest.name == name).map(|digest| digest.value);

        let mut part_digests = Vec::new();
        for (name, value) in fields.iter().take(fields.parts()) {
            let digest = key.digest(name, value);
            part_digests.push(digest.name);
            if value_of(digest.name) != Some(digest.value) {
                differences.add(name);
            }
        }
        // Parts that only the record's request had.
        let headers = rules.headers().iter().map(|name| String::from("header:") + name);
        for name in core::iter::once(String::from("query")).chain(headers) {
            let digest = key.name(&name);
            if !part_digests.contains(&digest) {
                part_digests.push(digest);
                if value_of(digest).is_some() {
                    differences.add(&name);
                }
            }
        }

        let stored_body: Vec<_> = stored.iter().filter(|digest| !part_digests.contains(&digest.name)).collect();
        let body: Vec<_> =
            fields.iter().skip(fields.parts()).map(|(name, value)| (name, key.digest(name, value))).collect();
        let stored_at = |name: [u8; 4]| stored_body.iter().find(|digest| digest.name == name);
        let last_known = body.iter().rposition(|(_, digest)| stored_at(digest.name).is_some());
        let stored_all = stored_body.len() < rules.fields();
        match last_known {
            None if stored_body.is_empty() && body.is_empty() => {}
            // Nothing in common: it is another kind of body, and single names would mislead.
            None => differences.add("body"),
            Some(last_known) => {
                for (at, (name, digest)) in body.iter().enumerate() {
                    match stored_at(digest.name) {
                        Some(stored) if stored.value == digest.value => {}
                        Some(_) => differences.add(name),
                        // Beyond the last stored field a field may be old: no digest was kept.
                        None if stored_all || at < last_known => differences.add(name),
                        None => {}
                    }
                }
                let gone = |stored: &&FieldDigest| !body.iter().any(|(_, digest)| digest.name == stored.name);
                differences.removed = !fields.truncated() && stored_body.iter().any(gone);
            }
        }
        if differences.names.is_empty() {
            differences.add("body");
        }
        differences
    }

    fn record_key(&self, record: &RecordId) -> RecordKey {
        let hash: [u8; 32] = blake3::keyed_hash(&self.fields_key, record.as_bytes()).into();
        let mut words = hash.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
        RecordKey(words.next().unwrap_or_default(), words.next().unwrap_or_default())
    }
}

impl fmt::Debug for Fingerprinter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fingerprinter(…)")
    }
}

/// The fingerprint of a request whose raw body is hashed as it arrives.
#[derive(Clone)]
pub struct Hasher {
    state: HasherState,
    body_bytes: u64,
    body_counts: bool,
}

#[derive(Clone)]
#[expect(
    clippy::large_enum_variant,
    reason = "one lives for the length of a large body; a box would be one more allocation"
)]
enum HasherState {
    Blake3(blake3::Hasher),
    Sha256(Hmac<Sha256>),
}

impl HasherState {
    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Blake3(hasher) => {
                hasher.update(bytes);
            }
            Self::Sha256(mac) => mac.update(bytes),
        }
    }
}

impl Hasher {
    /// Takes in the next bytes of the body.
    pub fn update(&mut self, chunk: &[u8]) {
        if self.body_counts {
            self.body_bytes += chunk.len() as u64;
            self.state.update(chunk);
        }
    }

    /// Ends the body.
    #[must_use]
    pub fn finish(mut self) -> Fingerprint {
        self.state.update(&self.body_bytes.to_be_bytes());
        Fingerprint(match self.state {
            HasherState::Blake3(hasher) => hasher.finalize().into(),
            HasherState::Sha256(mac) => mac.finalize().into_bytes().into(),
        })
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hasher({} bytes of body)", self.body_bytes)
    }
}

/// Eight bytes by which a record recognises a field and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FieldDigest {
    /// Of the name.
    pub name: [u8; 4],
    /// Of the value.
    pub value: [u8; 4],
}

impl FieldDigest {
    /// As a record holds it: name, then value.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 8] {
        let ([a, b, c, d], [e, f, g, h]) = (self.name, self.value);
        [a, b, c, d, e, f, g, h]
    }

    /// Reads what [`FieldDigest::to_bytes`] wrote.
    #[must_use]
    pub fn from_bytes([a, b, c, d, e, f, g, h]: [u8; 8]) -> Self {
        Self { name: [a, b, c, d], value: [e, f, g, h] }
    }
}

/// What a mismatch can say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Differences {
    /// Fields with another value, or that are new: pointers, `form:NAME`, `header:NAME`, or one
    /// of `method`, `path`, `query`, `body`. At most 16, long ones cut. Never a value.
    pub names: Vec<String>,
    /// Whether a field of the body that the record's request had is gone. Its name is not known.
    pub removed: bool,
}

impl Differences {
    fn add(&mut self, name: &str) {
        if self.names.len() >= NAMES_MAX {
            return;
        }
        self.names.push(if name.len() <= NAME_BYTES_MAX {
            name.to_owned()
        } else {
            let end = name.floor_char_boundary(NAME_BYTES_MAX);
            String::from(name.get(..end).unwrap_or_default()) + "…"
        });
    }
}

/// The key of one record's field digests: a BLAKE3 hash of its id, used for SipHash-2-4.
///
/// SipHash is a keyed pseudo-random function made for short inputs. A key serves some twenty of
/// them, each cut to four bytes, and costs a sixth of what BLAKE3 does.
#[derive(Clone, Copy)]
struct RecordKey(u64, u64);

impl RecordKey {
    fn digest(self, name: &str, value: &[u8]) -> FieldDigest {
        let name = self.name(name);
        FieldDigest { name, value: short(self.0, self.1, &[b"v", &name, value]) }
    }

    fn name(self, name: &str) -> [u8; 4] {
        short(self.0, self.1, &[b"n", name.as_bytes()])
    }
}

#[expect(
    deprecated,
    reason = "what replaced it promises no algorithm; this one says SipHash-2-4, and a test holds it to that"
)]
fn short(key: u64, other: u64, pieces: &[&[u8]]) -> [u8; 4] {
    let mut hasher = core::hash::SipHasher::new_with_keys(key, other);
    for piece in pieces {
        hasher.write(piece);
    }
    let [a, b, c, d, ..] = hasher.finish().to_le_bytes();
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_digests_are_siphash_2_4() {
        // The vectors of its authors: key 00 to 0f, input 00, 00 01, …
        let (key, other) = (0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908);
        let input: Vec<u8> = (0..15).collect();
        assert_eq!(short(key, other, &[]), [0x31, 0x0e, 0x0e, 0xdd]);
        assert_eq!(short(key, other, &[&[0]]), [0xfd, 0x67, 0xdc, 0x93]);
        // 0xa129ca6149be45e5, the example of the paper.
        assert_eq!(short(key, other, &[&input]), [0xe5, 0x45, 0xbe, 0x49]);
        assert_eq!(short(key, other, &[&input[..3], &input[3..]]), short(key, other, &[&input]));
    }
}
