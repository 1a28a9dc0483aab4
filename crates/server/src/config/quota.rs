//! `[quota]`: what each tenant may take, and those for whom it is something else.

use core::num::NonZeroU32;
use std::collections::HashMap;

use onceward::{Quota, Quotas};

use super::{
    forms,
    problem::{Origin, Problems},
    read::Layers,
    tree::{Node, Value},
    units::{self, shown},
};

pub(super) fn quotas(section: Layers<'_>, problems: &mut Problems<'_>) -> Quotas {
    let each = quota(section);
    let mut tenants = HashMap::new();
    let mut names: HashMap<String, &Origin> = HashMap::new();
    let items = section.node("tenant").map_or(&[][..], Node::items);
    for node in items.iter().filter(|node| matches!(node.value, Value::Table(_))) {
        let table = Layers::new(Some(node), None);
        let Some(at) = table.at("name") else {
            problems.error(&node.at, r#"[[quota.tenant]] lacks "name""#.to_owned());
            continue;
        };
        // What is no name has been told by the check.
        let Some(name) = table.form("name", forms::tenant) else { continue };
        if let Some(first) = names.insert(name.clone(), at) {
            let first = problems.place(first);
            problems.error(at, format!("two quotas are for the tenant {}; the first is at {first}", shown(&name)));
        }
        let own = quota(table);
        has_rate(own.or(each), table, problems);
        tenants.insert(name, own);
    }
    has_rate(each, section, problems);
    Quotas { each, tenants }
}

fn quota(table: Layers<'_>) -> Quota {
    let number = |key| table.node(key).and_then(|_| NonZeroU32::new(table.integer(key, 0)));
    Quota {
        claims_per_second: number("claims_per_second"),
        burst: number("burst"),
        live_records: table.node("live_records").map(|_| table.integer("live_records", u64::MAX)),
        bytes: table.form("bytes", units::size),
    }
}

/// A burst of nothing says nothing.
fn has_rate(quota: Quota, table: Layers<'_>, problems: &mut Problems<'_>) {
    if quota.claims_per_second.is_none()
        && let Some(at) = table.at("burst")
    {
        problems.error(at, r#""burst" needs "claims_per_second" beside it, or in [quota]"#.to_owned());
    }
}
