//! What each tenant takes up, for quotas. The index names a tenant by a number, the log by a tag.

use std::collections::HashMap;

use onceward_core::codec;

use crate::Usage;

/// The tag of the tenant whose record this is; 0 where it has none.
pub(super) fn tag_of(record: &[u8]) -> u64 {
    codec::tenant_of(record).map_or(0, tag)
}

/// The beginning of a hash that nobody finds another name for.
fn tag(tenant: &str) -> u64 {
    if tenant.is_empty() {
        return 0;
    }
    let [first, ..] = *blake3::hash(tenant.as_bytes()).as_bytes().as_chunks::<8>().0 else { return 0 };
    // 0 is taken.
    u64::from_le_bytes(first).max(1)
}

#[derive(Debug, Default)]
struct Tenant {
    tag: u64,
    usage: Usage,
}

/// The tenants that have records.
#[derive(Debug, Default)]
pub(super) struct Tenants {
    numbers: HashMap<u64, u32>,
    tenants: Vec<Tenant>,
    /// Numbers that nobody has any more.
    free: Vec<u32>,
}

impl Tenants {
    /// The number of the tenant with this tag, which it keeps as long as it has records.
    pub(super) fn number(&mut self, tag: u64) -> u32 {
        if let Some(number) = self.numbers.get(&tag) {
            return *number;
        }
        let number = self.free.pop().unwrap_or_else(|| {
            self.tenants.push(Tenant::default());
            // As many as there are records, at most.
            u32::try_from(self.tenants.len() - 1).unwrap_or(u32::MAX)
        });
        if let Some(tenant) = self.tenants.get_mut(number as usize) {
            *tenant = Tenant { tag, usage: Usage::default() };
        }
        self.numbers.insert(tag, number);
        number
    }

    /// A record came.
    pub(super) fn add(&mut self, number: u32, bytes: usize) {
        if let Some(Tenant { usage, .. }) = self.tenants.get_mut(number as usize) {
            usage.records += 1;
            usage.bytes += bytes as u64;
        }
    }

    /// A record went.
    pub(super) fn take(&mut self, number: u32, bytes: usize) {
        let Some(Tenant { tag, usage }) = self.tenants.get_mut(number as usize) else { return };
        usage.records = usage.records.saturating_sub(1);
        usage.bytes = usage.bytes.saturating_sub(bytes as u64);
        if usage.records == 0 {
            self.numbers.remove(tag);
            self.free.push(number);
        }
    }

    pub(super) fn usage(&self, tenant: &str) -> Usage {
        let number = self.numbers.get(&tag(tenant));
        number.and_then(|number| self.tenants.get(*number as usize)).map(|tenant| tenant.usage).unwrap_or_default()
    }
}
