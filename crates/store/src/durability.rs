//! Which routes' records are kept how, where a store offers more than one way.

use std::{
    collections::{HashMap, HashSet},
    sync::{PoisonError, RwLock},
};

/// Where a claim has to be before its request is sent, and so what has to fail before it is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Durability {
    /// Where nothing that was acknowledged is lost.
    #[default]
    Strict,
    /// In the cache and in a local log, from which it goes to a journal: only failures of several at a time lose it.
    Journaled,
    /// In the cache alone.
    Cache,
}

impl Durability {
    /// All, in the order in which a record is looked for.
    pub const ALL: [Self; 3] = [Self::Strict, Self::Journaled, Self::Cache];

    /// As the configuration has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Journaled => "journaled",
            Self::Cache => "cache",
        }
    }
}

/// Each route's, by its name; a route that is not named is strict. It follows the configuration.
#[derive(Debug, Default)]
pub struct Durabilities(RwLock<Said>);

#[derive(Debug, Default)]
struct Said {
    routes: HashMap<String, Durability>,
    /// Those that a route has, which each request asks: there may be thousands of routes.
    used: HashSet<Durability>,
}

impl Durabilities {
    /// These, from now on.
    pub fn set(&self, routes: HashMap<String, Durability>) {
        let used = routes.values().copied().collect();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Said { routes, used };
    }

    /// That of `route`.
    #[must_use]
    pub fn of(&self, route: &str) -> Durability {
        self.0.read().unwrap_or_else(PoisonError::into_inner).routes.get(route).copied().unwrap_or_default()
    }

    /// Whether a route is kept so.
    #[must_use]
    pub fn has(&self, durability: Durability) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).used.contains(&durability)
    }
}
