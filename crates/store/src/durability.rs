//! Which routes' records are kept how, where a store offers more than one way.

use std::{
    collections::HashSet,
    sync::{PoisonError, RwLock},
};

/// The routes whose records are kept in the cache alone; all others' are kept where nothing that was acknowledged is
/// lost. It follows the configuration.
#[derive(Debug, Default)]
pub struct CacheRoutes(RwLock<HashSet<String>>);

impl CacheRoutes {
    /// These, from now on.
    pub fn set(&self, routes: HashSet<String>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = routes;
    }

    /// Whether `route` is one of them.
    #[must_use]
    pub fn has(&self, route: &str) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains(route)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}
