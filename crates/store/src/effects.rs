//! Effects that an upstream wrote down, in the transaction that made each.

use std::fmt;

use onceward_core::{key::RecordId, outcome::Outcome, record::Fence};

use crate::Answer;

/// An effect that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effect {
    /// What was answered, where that was written down with it.
    pub answer: Option<Outcome>,
}

/// Where effects are written down. It has nothing to do with where records are kept.
pub trait EffectTable: Send + Sync + fmt::Debug + 'static {
    /// The effect called `name` that was made for a record, at most one. From this step on nobody makes one for it under
    /// a fence smaller than `fence`: `None` means that no such holder did, and that none ever will. An error means
    /// nothing, except that such a holder may be refused from now on.
    fn look<'a>(&'a self, id: RecordId, fence: Fence, name: &'a str) -> Answer<'a, Option<Effect>>;
}
