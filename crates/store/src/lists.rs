//! Lists of several stores as one: first what the first has, then what the next has.

use onceward_core::key::RecordId;

use crate::{Filter, Page, Store, StoreError, recent::Recent};

/// Where lists of each store but the last go on, of three at most.
#[derive(Debug, Default)]
pub(crate) struct Lists([Recent; 2]);

/// Where a list goes on at the begin of the store at `index`: no key's.
fn begin_of(index: usize) -> RecordId {
    let mut id = [0xff; 32];
    if let (Some(last), Ok(index)) = (id.last_mut(), u8::try_from(index)) {
        *last -= index;
    }
    RecordId(id)
}

impl Lists {
    /// A page, and how many of its records are of each store, in their order. What is `None` is left out.
    pub(crate) async fn page(
        &self,
        stores: &[Option<&dyn Store>],
        after: Option<RecordId>,
        limit: usize,
        filter: Filter,
    ) -> Result<(Page, Vec<usize>), StoreError> {
        let (first, mut after) = self.goes_on(stores.len(), after);
        let mut counts = vec![0; stores.len()];
        let mut begun: Option<Page> = None;
        for (at, (store, count)) in stores.iter().zip(&mut counts).enumerate().skip(first) {
            let Some(store) = store else {
                after = None;
                continue;
            };
            let left = limit.saturating_sub(begun.as_ref().map_or(0, |page| page.records.len()));
            let further = if left > 0 { Some(store.scan(after.take(), left, filter.clone()).await) } else { None };
            let page = match (further, begun.take()) {
                (Some(Err(error)), None) => return Err(error),
                (Some(Ok(mut further)), begun) => {
                    *count = further.records.len();
                    if let (Some(next), Some(lists)) = (further.next, self.0.get(at)) {
                        lists.note(next);
                    }
                    match begun {
                        None => further,
                        Some(mut page) => {
                            page.records.append(&mut further.records);
                            Page { next: further.next, ..page }
                        }
                    }
                }
                // Whoever goes on there is told where it does not answer.
                (_, begun) => Page { next: Some(begin_of(at)), ..begun.unwrap_or_default() },
            };
            if page.next.is_some() {
                return Ok((page, counts));
            }
            begun = Some(page);
        }
        Ok((begun.unwrap_or_default(), counts))
    }

    /// At which store, of so many, and after which of its records.
    fn goes_on(&self, stores: usize, after: Option<RecordId>) -> (usize, Option<RecordId>) {
        let Some(after) = after else { return (0, None) };
        if let Some(index) = (0..stores).find(|index| after == begin_of(*index)) {
            return (index, None);
        }
        let noted = self.0.iter().position(|lists| lists.has(&after));
        (noted.unwrap_or_else(|| stores.saturating_sub(1)), Some(after))
    }
}
