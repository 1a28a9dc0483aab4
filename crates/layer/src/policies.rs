//! The fingerprint rules that records were made with: kept in the store as text, found again by the number that a
//! record names them by.
//!
//! Rules change with the configuration, records stay. A record is compared under the rules it was made with; where
//! those are gone, the key alone decides, and that is counted.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use onceward_core::{
    canonical::{BodyRule, RuleSet, Rules},
    fingerprint::Hash,
};
use onceward_store::RULES_MAX;
use serde_json::{Value, json};

use crate::engine::Engine;

/// The rules that this process has met, by their number.
#[derive(Debug, Default)]
pub(crate) struct Policies {
    known: ArcSwap<HashMap<u32, Arc<Rules>>>,
    /// One request keeps rules; those that come meanwhile do not wait for it.
    keeping: tokio::sync::Mutex<()>,
}

impl Policies {
    fn find(&self, policy: u32) -> Option<Arc<Rules>> {
        self.known.load().get(&policy).cloned()
    }

    /// Whether the store has them, for all that this process knows.
    pub(crate) fn is_kept(&self, policy: u32) -> bool {
        self.known.load().contains_key(&policy)
    }

    fn know(&self, policy: u32, rules: &Arc<Rules>) {
        self.known.rcu(|known| {
            // What a store does not keep is not worth more room here.
            let mut next = if known.len() < RULES_MAX { HashMap::clone(known) } else { HashMap::new() };
            next.insert(policy, Arc::clone(rules));
            next
        });
    }
}

/// Names no rules: what is hashed so is compared with nothing.
pub(crate) const UNKNOWN: u32 = 0;

/// The number by which records name their rules.
pub(crate) fn number(rules: &Rules) -> u32 {
    let [a, b, c, d, ..] = rules.policy();
    u32::from_be_bytes([a, b, c, d])
}

impl Engine {
    /// Keeps the rules in the store before the first record names them. Where the store does not take them, the claim
    /// goes on: should these rules change, its record is compared by its key alone, unless a later claim keeps them.
    pub(crate) async fn keep_rules(&self, rules: &Rules) {
        let policy = number(rules);
        let Ok(_keeping) = self.0.policies.keeping.try_lock() else { return };
        match self.store().keep_rules(policy, &text(rules)).await {
            Ok(()) => self.0.policies.know(policy, &Arc::new(rules.clone())),
            Err(error) => tracing::warn!(%error, "the fingerprint rules could not be kept in the store; trying again"),
        }
    }

    /// The rules that records name by `policy`, most likely `present`; `None` where they are gone.
    pub(crate) async fn rules_or(&self, policy: u32, present: &Rules) -> Option<Arc<Rules>> {
        // Also before the store has them.
        if number(present) == policy { Some(Arc::new(present.clone())) } else { self.rules(policy).await }
    }

    /// The rules that records name by `policy`; `None` where they are gone.
    pub(crate) async fn rules(&self, policy: u32) -> Option<Arc<Rules>> {
        if let Some(rules) = self.0.policies.find(policy) {
            return Some(rules);
        }
        let kept = match self.store().rules(policy).await {
            Ok(kept) => kept?,
            Err(error) => {
                tracing::warn!(%error, "the fingerprint rules of a record could not be read");
                return None;
            }
        };
        let rules = read(&kept).filter(|rules| number(rules) == policy);
        let Some(rules) = rules.map(Arc::new) else {
            tracing::warn!(policy, "the fingerprint rules that the store keeps are of another version or damaged");
            return None;
        };
        self.0.policies.know(policy, &rules);
        Some(rules)
    }
}

fn text(rules: &Rules) -> String {
    let set = rules.set();
    json!({
        "version": 1,
        "hash": match set.hash { Hash::Sha256 => "sha256", _ => "blake3" },
        "body": match set.body { BodyRule::Raw => "raw", BodyRule::None => "none", _ => "canonical" },
        "strip": set.strip,
        "keep": set.keep,
        "require": set.require,
        "unordered": set.unordered,
        "headers": set.headers,
        "sort_query": set.sort_query,
        "decode": set.decode,
        "fields": set.fields,
        "canonical_body_max": set.canonical_body_max,
    })
    .to_string()
}

/// `None` for what this version does not know.
fn read(text: &str) -> Option<Rules> {
    let said: Value = serde_json::from_str(text).ok()?;
    let list = |name: &str| -> Option<Vec<String>> {
        said.get(name)?.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
    };
    let flag = |name: &str| said.get(name)?.as_bool();
    let number = |name: &str| usize::try_from(said.get(name)?.as_u64()?).ok();
    if said.get("version")?.as_u64()? != 1 {
        return None;
    }
    let set = RuleSet {
        hash: match said.get("hash")?.as_str()? {
            "blake3" => Hash::Blake3,
            "sha256" => Hash::Sha256,
            _ => return None,
        },
        body: match said.get("body")?.as_str()? {
            "canonical" => BodyRule::Canonical,
            "raw" => BodyRule::Raw,
            "none" => BodyRule::None,
            _ => return None,
        },
        strip: list("strip")?,
        keep: list("keep")?,
        require: list("require")?,
        unordered: list("unordered")?,
        headers: list("headers")?,
        sort_query: flag("sort_query")?,
        decode: flag("decode")?,
        fields: number("fields")?,
        canonical_body_max: number("canonical_body_max")?,
    };
    Rules::compile(&set).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_come_back_from_their_text_and_what_is_not_known_does_not() {
        let strings = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let full = RuleSet {
            hash: Hash::Sha256,
            strip: strings(&["/at", "query:ts", "form:nonce"]),
            require: strings(&["/amount"]),
            unordered: strings(&["/items", "/a/*/b"]),
            headers: strings(&["X-Version", "accept"]),
            sort_query: true,
            decode: true,
            fields: 3,
            canonical_body_max: 7,
            ..RuleSet::default()
        };
        let keep = RuleSet { keep: strings(&["/amount", "/to"]), ..RuleSet::default() };
        let raw = RuleSet { body: BodyRule::Raw, ..RuleSet::default() };
        for set in [RuleSet::default(), full, keep, raw] {
            let rules = Rules::compile(&set).unwrap();
            let again = read(&text(&rules)).unwrap();
            assert_eq!((again.policy(), text(&again)), (rules.policy(), text(&rules)));
        }
        for foreign in ["", "{}", "null", r#"{"version":2}"#] {
            assert!(read(foreign).is_none(), "{foreign}");
        }
    }

    #[tokio::test]
    async fn the_rules_of_today_are_at_hand_before_the_store_has_them() {
        let store = Arc::new(onceward_store::memory::Memory::default());
        let routes = crate::Routes::new(vec![], crate::Route::new("default"));
        let secret = crate::Secret::from_bytes([0; 32]);
        let engine = Engine::new(store, secret, routes, crate::Limits::default(), Engine::new_session());
        let rules = Rules::default();
        assert!(engine.rules(number(&rules)).await.is_none());
        assert!(engine.rules_or(number(&rules), &rules).await.is_some());
        assert!(engine.rules_or(1, &rules).await.is_none());
    }
}
