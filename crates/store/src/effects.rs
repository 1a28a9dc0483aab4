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

/// What is written down of a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Noted {
    /// Whether the effect is there.
    pub is_made: bool,
    /// The largest fence that an effect or a look named.
    pub fence: Option<Fence>,
    /// Whether the application's own table has a row of it, where one was asked for.
    pub has_row: Option<bool>,
}

/// A table of the application, whose rows say which record they are of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rows {
    /// `table`, or `schema.table`.
    pub table: String,
    /// A column of it of type `bytea`.
    pub id_column: String,
}

/// Where effects are written down. It has nothing to do with where records are kept.
pub trait EffectTable: Send + Sync + fmt::Debug + 'static {
    /// The effect called `name` that was made for a record, at most one. From this step on nobody makes one for it under
    /// a fence smaller than `fence`: `None` means that no such holder did, and that none ever will. An error means
    /// nothing, except that such a holder may be refused from now on.
    fn look<'a>(&'a self, id: RecordId, fence: Fence, name: &'a str) -> Answer<'a, Option<Effect>>;

    /// What is written down of each record, in the order of `ids`. Changes nothing: a holder may still make the effect.
    fn noted<'a>(&'a self, ids: &'a [RecordId], name: &'a str, rows: Option<&'a Rows>) -> Answer<'a, Vec<Noted>>;
}
