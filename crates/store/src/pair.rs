//! Lists of two stores as one: first what the one has, then what the other has.

use onceward_core::key::RecordId;

use crate::{Filter, Page, Store as _, StoreError, guarded::Guarded, recent::Recent};

/// Where a list goes on at the latter store's begin: no key's.
const LATTER: RecordId = RecordId([0xff; 32]);

/// Where lists of the former store go on.
#[derive(Debug, Default)]
pub(crate) struct Scans(Recent);

impl Scans {
    /// A page, and how many of its records, its first ones, are of `former`. Where `former` is none, a list that begins is
    /// one of `latter` alone.
    pub(crate) async fn page(
        &self,
        former: Option<&Guarded>,
        latter: &Guarded,
        after: Option<RecordId>,
        limit: usize,
        filter: Filter,
    ) -> Result<(Page, usize), StoreError> {
        let former = former.filter(|_| after.as_ref().is_none_or(|id| self.0.has(id)));
        let Some(former) = former else {
            let page = latter.scan(after.filter(|id| *id != LATTER), limit, filter).await?;
            return Ok((page, 0));
        };
        let mut page = former.scan(after, limit, filter.clone()).await?;
        let of_former = page.records.len();
        if let Some(next) = page.next {
            self.0.note(next);
            return Ok((page, of_former));
        }
        let left = limit.saturating_sub(of_former);
        let rest = if left > 0 { latter.scan(None, left, filter).await.ok() } else { None };
        match rest {
            Some(rest) => {
                page.records.extend(rest.records);
                page.next = rest.next;
            }
            // Whoever goes on there is told where it does not answer.
            None => page.next = Some(LATTER),
        }
        Ok((page, of_former))
    }
}
