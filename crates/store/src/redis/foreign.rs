//! Keys of somebody else in the same Redis: whoever has them may flush it, and their memory counts against records.

use std::sync::{Mutex, PoisonError};

use redis::Value;

use super::{Shared, key, link::CallError};
use crate::StoreError;

/// Keys looked at each time; a pass over all of them goes on where the last look ended.
const AT_A_TIME: u32 = 200;

/// What was seen of keys that are not ours.
#[derive(Debug, Default)]
pub(super) struct Foreign(Mutex<Pass>);

#[derive(Debug)]
struct Pass {
    cursor: Vec<u8>,
    /// In this pass so far.
    seen: u64,
    /// In the pass before.
    before: u64,
}

impl Default for Pass {
    fn default() -> Self {
        Self { cursor: b"0".to_vec(), seen: 0, before: 0 }
    }
}

impl Foreign {
    /// Takes in what a look found, and where the next begins.
    fn note(&self, cursor: Vec<u8>, seen: u64) {
        let mut pass = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pass.seen += seen;
        if cursor == b"0" {
            pass.before = std::mem::take(&mut pass.seen);
        }
        pass.cursor = cursor;
    }

    fn cursor(&self) -> Vec<u8> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).cursor.clone()
    }

    /// What there is to say of them.
    pub(super) fn concern(&self) -> Option<String> {
        let pass = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = pass.seen.max(pass.before);
        (count > 0).then(|| {
            format!(
                "at least {count} of its keys are somebody else's: their memory and their FLUSHALL are this store's; give it a server of \
                 its own"
            )
        })
    }
}

/// Looks at some more keys. Not in a Cluster, where each server would have to be asked.
pub(super) async fn look(shared: &Shared) -> Result<(), StoreError> {
    if shared.side.address().is_cluster() {
        return Ok(());
    }
    let mut scan = redis::cmd("SCAN");
    scan.arg(shared.foreign.cursor()).arg("COUNT").arg(AT_A_TIME);
    let Value::Array(mut parts) = shared.side.call(&scan).await.map_err(CallError::read)? else { return Ok(()) };
    if let (Some(Value::Array(names)), Some(Value::BulkString(cursor))) = (parts.pop(), parts.pop()) {
        let is_foreign = |name: &&Value| !matches!(name, Value::BulkString(name) if name.starts_with(key::OURS));
        shared.foreign.note(cursor, u64::try_from(names.iter().filter(is_foreign).count()).unwrap_or_default());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_others_are_told_until_a_whole_pass_found_none() {
        let foreign = Foreign::default();
        foreign.note(b"17".to_vec(), 2);
        assert!(foreign.cursor() == b"17" && foreign.concern().unwrap().contains("at least 2 of"));
        foreign.note(b"0".to_vec(), 1);
        foreign.note(b"5".to_vec(), 0);
        assert!(foreign.concern().unwrap().contains("at least 3 of"), "this pass is not over");
        foreign.note(b"0".to_vec(), 0);
        assert_eq!(foreign.concern(), None);
    }
}
