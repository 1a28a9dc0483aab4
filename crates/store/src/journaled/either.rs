//! What a view is on: Redis, or the journal's database itself, where nobody reaches Redis.
//!
//! In a view on the database a step is one transaction on the key's row. So nothing is ever dirty there, and its view is warm
//! from the first; whoever is shut out is so by its member row, which the same transaction looks at. All else is as in any
//! view: it serves once all have acknowledged it, and the one after it, on Redis again, is made warm by the journal.

use std::sync::Arc;

use onceward_core::{
    key::RecordId,
    record::{Fence, SessionId},
};

use super::{At, Dirty, Fact, Front, Incarnation, Install, Journal, Outbox, Row, Sight, Stepped, ViewRow, What};
use crate::Answer;

/// Redis and the database, each for the views that are on it.
#[derive(Debug)]
pub(super) struct Either {
    pub(super) redis: Arc<dyn Front>,
    pub(super) database: Arc<dyn Journal>,
}

impl Sight {
    /// Of a view on the database.
    pub(super) fn of_database(row: &ViewRow) -> Self {
        Self { is_primary: true, incarnation: Incarnation::DATABASE, view: row.view, is_warm: true, mark: Fence(0) }
    }
}

/// What the database has nothing to do for.
fn is_so<'a, T: Send + 'a>(answer: T) -> Answer<'a, T> {
    Box::pin(std::future::ready(Ok(answer)))
}

impl Front for Either {
    fn step<'a>(&'a self, at: &'a At, id: RecordId, what: What<'a>, row: Option<&'a Row>) -> Answer<'a, Stepped> {
        if at.incarnation.is_database() {
            return self.database.step(at, id, what);
        }
        self.redis.step(at, id, what, row)
    }

    /// Of Redis: how a view on the database stands is in its row.
    fn look<'a>(&'a self, partitions: &'a [u16]) -> Answer<'a, Vec<(u16, Sight)>> {
        self.redis.look(partitions)
    }

    fn install<'a>(&'a self, at: &'a At, install: &'a Install) -> Answer<'a, bool> {
        if at.incarnation.is_database() { is_so(true) } else { self.redis.install(at, install) }
    }

    fn admit<'a>(&'a self, at: &'a At) -> Answer<'a, bool> {
        if at.incarnation.is_database() { is_so(true) } else { self.redis.admit(at) }
    }

    fn shut_out<'a>(&'a self, at: &'a At, target: SessionId) -> Answer<'a, bool> {
        if at.incarnation.is_database() { is_so(true) } else { self.redis.shut_out(at, target) }
    }

    fn dirty<'a>(&'a self, at: &'a At) -> Answer<'a, Option<Outbox>> {
        if at.incarnation.is_database() { is_so(Some(Outbox::default())) } else { self.redis.dirty(at) }
    }

    fn clean<'a>(&'a self, at: &'a At, shipped: &'a [Dirty]) -> Answer<'a, bool> {
        if at.incarnation.is_database() { is_so(true) } else { self.redis.clean(at, shipped) }
    }

    fn merge<'a>(&'a self, at: &'a At, rows: &'a [Fact]) -> Answer<'a, bool> {
        if at.incarnation.is_database() { is_so(true) } else { self.redis.merge(at, rows) }
    }

    fn warm<'a>(&'a self, at: &'a At) -> Answer<'a, bool> {
        if at.incarnation.is_database() { is_so(true) } else { self.redis.warm(at) }
    }
}
